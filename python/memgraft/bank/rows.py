"""Writing a bank so that a kill loses nothing finished and nothing unfinished has the final name."""

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from memgraft._core import __version__
from memgraft.arguments import refuse_paths
from memgraft.bank.dtypes import AnyArray, FloatArray, encode, value_dtype
from memgraft.bank.files import write_text
from memgraft.bank.manifest import INDEX_NAME, MANIFEST_NAME, Manifest
from memgraft.bank.partial import Partial
from memgraft.bank.provenance import ORIGINS_NAME, Origins
from memgraft.bank.shards import ShardLayout
from memgraft.errors import ArgumentError, FingerprintError
from memgraft.index import NgramIndex
from memgraft.keyed import Closing
from memgraft.keyset import KeySet
from memgraft.names import TOOL
from memgraft.system import write_beside


class RowWriter(Closing):
    """Writes the values of a key set, in any order of chunks, resumable after a kill, by one process or several.

    Everything goes to ``<path>.partial``; a second writer with the same settings takes up where the first
    stopped, one with other settings is refused. `seal` renames the directory to ``path``.

    Args:
        path: the bank directory to be; must not exist.
        keys: the keys; row i of the values belongs to key i.
        taps: donor depths, one per tap of the values.
        value_dim: channels per tap.
        dtype: ``bf16``, ``fp16``, ``fp32``, ``fp8_e4m3`` or ``int8``.
        donor: the donor and how it is run (JSON); should hold its ``fingerprint``.
        tokenizer: the recipient tokenizer (JSON); should hold its ``fingerprint``.
        scales: fp32 ``[taps, value_dim]``, for int8 only (see `memgraft.bank.dtypes.channel_scales`).
        shard_bytes: upper bound of a shard's size, at least one row.
        order: (R,) the rows in the order in which they are written: where given, `write`, `missing` and the done-marks
            count places in it, and a chunk's rows lie scattered. It must be the same for every writer of this bank.
        rank: this writer among ``world_size``; with more than one, each takes chunks by `claim`, and the one that finds
            all done seals (`try_seal`).
        world_size: how many write at once.

    Raises:
        ArgumentError: ``path`` exists, an argument is out of range, or a running rank has another world size.
        FingerprintError: ``<path>.partial`` holds another harvest.
        StorageError: no room, no permission, or another process is writing.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        keys: KeySet,
        taps: Sequence[int],
        value_dim: int,
        dtype: str = "bf16",
        donor: Mapping[str, Any],
        tokenizer: Mapping[str, Any],
        scales: FloatArray | None = None,
        shard_bytes: int = 4 << 30,
        order: npt.NDArray[np.integer[Any]] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        refuse_paths(keys=keys)
        if not 0 <= rank < world_size:
            raise ArgumentError(f"rank {rank}: expected 0 to {world_size - 1} in a world of {world_size}")
        self.rank, self.world_size = rank, world_size
        self.path = Path(path).absolute()
        self.keys = keys
        self.num_rows = len(keys)
        self.taps = tuple(int(tap) for tap in taps)
        self.value_dim = int(value_dim)
        self.dtype = value_dtype(dtype)
        self._donor, self._tokenizer = dict(donor), dict(tokenizer)
        if not self.taps or self.value_dim < 1:
            raise ArgumentError(f"taps {self.taps}, value_dim {value_dim}: expected at least one tap and one channel")
        if (scales is None) == (self.dtype.scales == "channel"):
            raise ArgumentError(f"{dtype} values {'need' if scales is None else 'take no'} channel scales")
        if scales is not None and scales.shape != (len(self.taps), self.value_dim):
            raise ArgumentError(f"scales: expected ({len(self.taps)}, {self.value_dim}), found {scales.shape}")
        self._scales = None if scales is None else np.ascontiguousarray(scales, dtype="<f4")
        if order is not None and len(order) != self.num_rows:
            raise ArgumentError(f"order: expected {self.num_rows} rows, found {len(order)}")
        self._order = order
        self._layout = ShardLayout.plan(
            keyset=keys.fingerprint,
            num_rows=self.num_rows,
            num_taps=len(self.taps),
            value_dim=self.value_dim,
            dtype=self.dtype,
            shard_bytes=shard_bytes,
        )
        self.row_bytes = self._layout.row_bytes
        self._partial = Partial(
            self.path,
            keys=keys,
            layout=self._layout,
            scales=self._scales,
            settings=self._describe(),
            rank=rank,
            world_size=world_size,
        )
        self.partial = self._partial.path
        # One hash of the tokenizer's file, whichever process seals.
        self._tokenizer = dict(self._partial.settings["tokenizer"])

    @property
    def num_shards(self) -> int:
        """Number of value shards."""
        return self._layout.num_shards

    def _describe(self) -> dict[str, Any]:
        settings = {
            "keyset": self.keys.fingerprint,
            "taps": list(self.taps),
            "value_dim": self.value_dim,
            "dtype": self.dtype.name,
            "scales": None if self._scales is None else zlib.crc32(self._scales.tobytes()),
            "donor": self._donor,
            "tokenizer": self._tokenizer,
            "shard_starts": self._layout.starts,
            "order": None if self._order is None else zlib.crc32(np.ascontiguousarray(self._order, "<i8").data),
            "tool": __version__,
        }
        described: dict[str, Any] = json.loads(json.dumps(settings))
        return described

    def missing(self) -> list[tuple[int, int]]:
        """The half-open ranges (of rows, or of places in ``order``) not yet written, ascending."""
        edges = [0, *(edge for part in self._partial.done for edge in part), self.num_rows]
        return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]

    @property
    def num_done(self) -> int:
        """Rows already written."""
        return sum(stop - start for start, stop in self._partial.done)

    def refresh(self) -> None:
        """Learns what the other writers have finished."""
        self._partial.refresh()

    def claim(self, start: int, stop: int) -> bool:
        """Takes the chunk ``start .. stop`` for this writer, until `give_back` or the end of its process.

        Returns:
            False where another writer is at it or has finished it. All must cut their chunks alike.
        """
        return self._partial.claim(start, stop)

    def give_back(self, start: int) -> None:
        """Ends the claim on the chunk that begins at ``start``."""
        self._partial.give_back(start)

    def write(self, start: int, values: AnyArray) -> None:
        """Writes rows ``start ..`` (or the rows at these places of ``order``) and marks them done once on the disk.

        Args:
            start: the first row, or the first place in ``order``.
            values: ``[n, taps, value_dim]`` float32, float16 or bfloat16 bits (uint16).

        Raises:
            ArgumentError: wrong shape, rows out of range, values that are not finite.
            StorageError: the disk refused.
        """
        values = np.asarray(values)
        expected = f"[n, {len(self.taps)}, {self.value_dim}]"
        if values.ndim != 3 or values.shape[1:] != (len(self.taps), self.value_dim):
            raise ArgumentError(f"values: expected shape {expected}, found {list(values.shape)}")
        stop = self._refuse_outside(start, len(values))
        if self._order is None:
            rows = np.arange(start, stop)
        else:
            rows = np.asarray(self._order[start:stop], np.int64)
            ascending = np.argsort(rows)
            rows, values = rows[ascending], values[ascending]
        # Everything is encoded before anything is written: a value that does not fit leaves the rows as they were.
        parts = [
            (place, rows[a:b], *encode(values[a:b], self.dtype, self._scales, first_row=rows[a:b]))
            for place, a, b in self._layout.split(rows)
        ]
        for part in parts:
            self._partial.put(*part)
        self._partial.mark(start, stop)

    def write_stored(self, start_row: int, stored: AnyArray, row_scales: FloatArray | None = None) -> None:
        """Writes rows that have the storage type already, bit for bit, as `Bank.values` and `Bank.scales` give them.

        Args:
            start_row: row of ``stored[0]``.
            stored: ``(n, taps, value_dim)`` of the storage type.
            row_scales: fp32 ``(n, taps)`` for fp8, else None.

        Raises:
            ArgumentError: shapes or types do not fit, or rows are out of range.
            StorageError: the disk refused.
        """
        if self._order is not None:
            raise ArgumentError("write_stored: expected a writer of rows in their own order, found one with `order`")
        shape = (len(stored), len(self.taps), self.value_dim)
        if stored.shape != shape or stored.dtype != self.dtype.storage:
            raise ArgumentError(f"stored: expected {self.dtype.storage} {shape}, found {stored.dtype} {stored.shape}")
        if (row_scales is not None) != (self.dtype.scales == "row"):
            raise ArgumentError(f"{self.dtype.name} rows {'need' if row_scales is None else 'take no'} row scales")
        stop_row = self._refuse_outside(start_row, len(stored))
        rows = np.arange(start_row, stop_row)
        for place, a, b in self._layout.split(rows):
            scales = None if row_scales is None else row_scales[a:b]
            self._partial.put(place, rows[a:b], stored[a:b], scales)
        self._partial.mark(start_row, stop_row)

    def _refuse_outside(self, start: int, count: int) -> int:
        """Where ``count`` rows from ``start`` on end, if the writer can take them."""
        stop = start + count
        if not 0 <= start <= stop <= self.num_rows:
            raise ArgumentError(f"rows {start}..{stop}: expected within 0..{self.num_rows}, one row per key")
        if not self._partial.is_open:
            raise ArgumentError(f"{self.path}: the writer is closed")
        return stop

    def try_seal(self) -> bool:
        """Whether this writer is the one to call `seal`: all rows are written and no other is sealing."""
        self.refresh()
        return not self.missing() and self._partial.try_seal()

    def seal(
        self,
        *,
        index: NgramIndex | None = None,
        dropped: Mapping[str, int] | None = None,
        corpus: Mapping[str, Any] | None = None,
        donor: Mapping[str, Any] | None = None,
        origins: Origins | None = None,
        files: Mapping[str, bytes] | None = None,
    ) -> Path:
        """Seals the shards, adds index and manifest, and renames to the final path, which it returns.

        Args:
            index: the index of ``keys``; built where not given.
            dropped: keys that were mined and not harvested, by reason.
            corpus: facts of the corpus; the key set's metadata by default.
            donor: more facts of the donor, added to those given at the start.
            origins: the source of each row, of a bank made of banks; ``corpus`` holds its facts.
            files: what else lies in the bank's folder, by name (`memgraft.bank.extras`).

        Raises:
            ArgumentError: rows are missing.
            FingerprintError: ``index`` belongs to other keys.
        """
        if missing := self.missing():
            ranges = ", ".join(f"{a}..{b}" for a, b in missing[:4]) + (", …" if len(missing) > 4 else "")
            raise ArgumentError(f"{self.path}: rows {ranges} are not written yet; write them, then finish")
        index = NgramIndex.build(self.keys) if index is None else index
        if index.keyset_fingerprint != self.keys.fingerprint:
            raise FingerprintError(
                f"index: expected one of key set {self.keys.fingerprint}, found {index.keyset_fingerprint}; "
                "build it from these keys"
            )
        folder = self._partial.folder
        index.save(folder / INDEX_NAME)
        if origins is not None:
            write_beside(folder / ORIGINS_NAME, origins.to_bytes())
        for name, content in (files or {}).items():
            write_beside(folder / name, content)
        manifest = Manifest(
            keyset=self.keys.fingerprint,
            index=index.fingerprint,
            corpus=dict(self.keys.metadata) if corpus is None else dict(corpus),
            tokenizer=self._tokenizer,
            donor={**self._donor, **(donor or {})},
            taps=self.taps,
            value_dim=self.value_dim,
            dtype=self.dtype.name,
            num_rows=self.num_rows,
            shards=tuple(self._partial.seal_shard(place) for place in range(self.num_shards)),
            dropped=dict(dropped or {}),
            tool=TOOL,
        ).sealed()
        write_text(folder / MANIFEST_NAME, manifest.to_json())
        self._partial.publish()
        return self.path

    def close(self) -> None:
        """Releases files and lock; what was written stays for the next writer."""
        self._partial.close()
