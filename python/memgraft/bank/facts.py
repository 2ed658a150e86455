"""What a bank says of itself, without its values: whose rows they are, their number, width and type."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memgraft.bank.extras import read_dropped
from memgraft.bank.manifest import Manifest
from memgraft.bank.overlay import Layer
from memgraft.bank.provenance import Origins, sources_of
from memgraft.bank.provenance import read as read_origins
from memgraft.errors import ArgumentError
from memgraft.index import NgramIndex
from memgraft.tokenizer_file import TOKENIZER_NAME


class BankFacts:
    """The facts of a bank or of a stack of them.

    Attributes:
        path: the directory; of a stack that of its base.
        layers: the banks, from the base up, with their paths, facts and rows; one where it is no stack.
        manifest: the bank's facts; of a stack those of its base, with the rows and shards of all.
        index: tokens to rows.
    """

    def __init__(self, path: Path, manifest: Manifest, index: NgramIndex, layers: Sequence[Layer] = ()) -> None:
        self.path = path
        self.manifest = manifest
        self.index = index
        self.layers = tuple(layers) or (Layer(path=path, manifest=manifest, first_row=0),)
        self._origins: dict[Path, Origins] = {}

    @property
    def paths(self) -> tuple[Path, ...]:
        """The directories, from the base up; what `Bank.open` takes."""
        return tuple(layer.path for layer in self.layers)

    def layer_of(self, row: int) -> Layer:
        """The bank that ``row`` is of: its corpus, its donor, and ``row - first_row``, the number the row has there.

        Raises:
            ArgumentError: no such row.
        """
        if not 0 <= row < self.num_rows:
            raise ArgumentError(f"row: expected 0 to {self.num_rows - 1}, got {row}")
        return next(layer for layer in self.layers if row in layer.rows)

    def origin_of(self, row: int) -> dict[str, Any]:
        """Where ``row`` was harvested, through stacks and merged banks: bank, its fingerprint, corpus, donor.

        Raises:
            ArgumentError: no such row.
            StorageError: a merged bank's ``origins.npy`` cannot be read.
            FormatError: it is damaged.
        """
        layer = self.layer_of(row)
        corpus = layer.manifest.corpus
        if "sources" not in corpus:
            return sources_of([layer])[0]
        if layer.path not in self._origins:
            self._origins[layer.path] = read_origins(layer.path, corpus)
        source: dict[str, Any] = corpus["sources"][int(self._origins[layer.path].sources[row - layer.first_row])]
        return source

    @property
    def fingerprint(self) -> str:
        """Hash of keys, values and their origin; what a graft names its bank by."""
        return self.manifest.fingerprint

    @property
    def space(self) -> str:
        """Fingerprint of the value space (`Manifest.space`): banks of one space can take each other's place."""
        return self.manifest.space

    @property
    def vocab_size(self) -> int:
        """Tokens of the keys are below this."""
        return self.index.vocab_size

    @property
    def max_order(self) -> int:
        """The longest key."""
        return self.index.max_order

    @property
    def taps(self) -> tuple[int, ...]:
        """Donor depths, one per tap."""
        return self.manifest.taps

    @property
    def num_rows(self) -> int:
        """Rows."""
        return self.manifest.num_rows

    @property
    def value_dim(self) -> int:
        """Channels per tap."""
        return self.manifest.value_dim

    @property
    def dtype(self) -> str:
        """Storage type of the values: ``bf16``, ``fp16``, ``fp32``, ``fp8_e4m3`` or ``int8``."""
        return self.manifest.dtype

    @property
    def tokenizer_path(self) -> Path | None:
        """The ``tokenizer.json`` of the recipient that lies in the bank (of a stack: in one of its banks), if any."""
        return next((path / TOKENIZER_NAME for path in self.paths if (path / TOKENIZER_NAME).is_file()), None)

    def dropped_keys(self) -> list[dict[str, Any]]:
        """Keys that were mined and not harvested: ``key``, ``count``, ``reason``; at most 100,000, most frequent first.

        Empty where none was dropped, and for banks from before they were listed; `manifest.dropped` counts them all.

        Raises:
            FormatError: the list is damaged.
        """
        return [entry for path in self.paths for entry in read_dropped(path)]
