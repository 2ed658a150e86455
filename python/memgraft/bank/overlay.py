"""Several banks as one memory: overlays on a base, nothing copied or rewritten."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from memgraft._core import fingerprint_bytes
from memgraft.bank.manifest import MANIFEST_NAME, Manifest, differing_space
from memgraft.errors import ArgumentError, FingerprintError
from memgraft.tokenizer import other_mapping

__all__ = ["Layer", "Where", "bank_paths", "check_layers", "stacked_manifest"]

Where = str | os.PathLike[str] | Sequence[Any]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One bank of a stack.

    Attributes:
        path: its directory.
        manifest: its facts: corpus, donor, fingerprint.
        first_row: the row of the stack that is its row 0.
    """

    path: Path
    manifest: Manifest
    first_row: int

    @property
    def rows(self) -> range:
        """Its rows, as the stack numbers them."""
        return range(self.first_row, self.first_row + self.manifest.num_rows)


def bank_paths(where: Where) -> list[Path]:
    """The directories that ``where`` names, from the base up; stacks inside stacks are laid out flat.

    A text that names no file is split at its commas, so that one argument of a verb can name a stack.

    Raises:
        ArgumentError: nothing is named, a stack contains itself, or something is no path.
    """
    paths = list(_paths(where, ()))
    if not paths:
        raise ArgumentError("banks: expected at least one bank directory, got an empty list")
    return paths


def _paths(where: Where, above: tuple[int, ...]) -> Iterator[Path]:
    if isinstance(where, (str, os.PathLike)):
        text = os.fspath(where)
        several = "," in text and not os.path.exists(text)
        yield from (Path(part).absolute() for part in (text.split(",") if several else [text]) if part)
        return
    if not isinstance(where, (list, tuple)):
        raise ArgumentError(f"banks: expected a path or a list of paths, got {type(where).__name__}")
    if id(where) in above:
        raise ArgumentError("banks: the list contains itself; name each bank once, from the base up")
    for one in where:
        yield from _paths(one, (*above, id(where)))


def check_layers(layers: Sequence[Layer]) -> None:
    """Refuses banks that are not of one value space, and banks that are named twice; reads nothing.

    Raises:
        ArgumentError: a bank is there twice.
        FingerprintError: donor, taps, width, what the donor read, or tokenizer differ from the base's.
    """
    base = layers[0]
    seen: dict[str, Path] = {}
    for layer in layers:
        if (before := seen.get(layer.manifest.fingerprint)) is not None:
            raise ArgumentError(f"{layer.path}: the same bank as {before}; name each bank once, from the base up")
        seen[layer.manifest.fingerprint] = layer.path
    for layer in layers[1:]:
        mine, theirs = base.manifest.tokenizer, layer.manifest.tokenizer
        if other_mapping(mine, theirs):
            raise FingerprintError(
                f"{layer.path / MANIFEST_NAME}: expected tokenizer {mine.get('fingerprint')} as in {base.path}, found "
                f"{theirs.get('fingerprint')}: its keys mean other text; mine the overlay with the base's tokenizer"
            )
        if layer.manifest.space != base.manifest.space:
            differing = differing_space(base.manifest.value_space, layer.manifest.value_space)
            raise FingerprintError(
                f"{layer.path / MANIFEST_NAME}: {differing} (the first as in {base.path}): its values mean something "
                "else; harvest the overlay with the base's settings (`memgraft extend`)"
            )


def stacked_manifest(layers: Sequence[Layer], index: str, dtype: str) -> Manifest:
    """The facts of a stack: those of the base, rows and shards of all, and a fingerprint of its own.

    Args:
        layers: the banks, from the base up.
        index: the fingerprint of the stacked index.
        dtype: what its values are given in.
    """
    base = layers[0].manifest
    each = [layer.manifest.fingerprint for layer in layers]
    dropped: dict[str, int] = {}
    for layer in layers:
        for reason, count in layer.manifest.dropped.items():
            dropped[reason] = dropped.get(reason, 0) + count
    return replace(
        base,
        keyset=index,
        index=index,
        corpus={**base.corpus, "overlays": [dict(layer.manifest.corpus) for layer in layers[1:]]},
        dtype=dtype,
        num_rows=sum(layer.manifest.num_rows for layer in layers),
        shards=tuple(shard for layer in layers for shard in layer.manifest.shards),
        dropped=dropped,
        fingerprint=fingerprint_bytes(json.dumps(["memgraft stack", *each], separators=(",", ":")).encode()),
    )
