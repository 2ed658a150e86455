"""Writing a bank so that a kill loses nothing finished and nothing unfinished has the final name."""

import fcntl
import json
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from memgraft._core import __version__, fingerprint_content
from memgraft.bank.done import DoneLog
from memgraft.bank.files import fsync_directory, pwrite_all, reserve, write_text
from memgraft.bank.manifest import INDEX_NAME, KEYS_NAME, MANIFEST_NAME, Manifest, ShardEntry
from memgraft.bank.values import AnyArray, FloatArray, encode, shard_header, shard_name, value_dtype
from memgraft.errors import ArgumentError, FingerprintError, FormatError, StorageError
from memgraft.index import NgramIndex
from memgraft.keyset import KeySet

if TYPE_CHECKING:
    from memgraft.bank.bank import Bank

_STATE_NAME = "state.json"
_DONE_NAME = "done.log"
_LOCK_NAME = "lock"
_FOLDER_NAME = "bank"
_UNSEALED = "0" * 64


class BankWriter:
    """Writes the values of a key set, in any order of chunks, resumable after a kill.

    Everything goes to ``<path>.partial``; a second writer with the same settings takes up where the first
    stopped, one with other settings is refused. `finish` renames the directory to ``path``.

    Args:
        path: the bank directory to be; must not exist.
        keys: the keys; row i of the values belongs to key i.
        taps: donor depths, one per tap of the values.
        value_dim: channels per tap.
        dtype: ``bf16``, ``fp16``, ``fp32``, ``fp8_e4m3`` or ``int8``.
        donor: the donor and how it is run (JSON); should hold its ``fingerprint``.
        tokenizer: the recipient tokenizer (JSON); should hold its ``fingerprint``.
        scales: fp32 ``[taps, value_dim]``, for int8 only (see `memgraft.bank.values.channel_scales`).
        shard_bytes: upper bound of a shard's size, at least one row.

    Raises:
        ArgumentError: ``path`` exists, or an argument is out of range.
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
    ) -> None:
        self.path = Path(path).absolute()
        self.partial = self.path.with_name(self.path.name + ".partial")
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
        self.row_bytes = len(self.taps) * self.value_dim * self.dtype.size
        self._starts = self._plan(shard_bytes)
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise ArgumentError(f"{self.path}: exists; open it with Bank.open, or remove it, or name another path")
        self._settings = self._describe()
        self._files: list[int] = []
        self._log: DoneLog | None = None
        self._open_partial()

    def _plan(self, shard_bytes: int) -> list[int]:
        rows_per_shard = max(1, shard_bytes // self.row_bytes)
        return [*range(0, max(self.num_rows, 1), rows_per_shard), self.num_rows]

    @property
    def num_shards(self) -> int:
        """Number of value shards."""
        return len(self._starts) - 1

    def _describe(self) -> dict[str, Any]:
        settings = {
            "keyset": self.keys.fingerprint,
            "taps": list(self.taps),
            "value_dim": self.value_dim,
            "dtype": self.dtype.name,
            "scales": None if self._scales is None else zlib.crc32(self._scales.tobytes()),
            "donor": self._donor,
            "tokenizer": self._tokenizer,
            "shard_starts": self._starts,
            "tool": __version__,
        }
        described: dict[str, Any] = json.loads(json.dumps(settings))
        return described

    def _open_partial(self) -> None:
        folder, state = self.partial / _FOLDER_NAME, self.partial / _STATE_NAME
        try:
            self.partial.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.partial / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StorageError(f"{self.partial}: cannot be written: {error.strerror}; choose another path") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise StorageError(
                f"{self.partial}: another process is writing this bank; wait for it or stop it"
            ) from None
        try:
            if state.exists():
                self._check_settings(state)
            else:
                shutil.rmtree(folder, ignore_errors=True)
                (self.partial / _DONE_NAME).unlink(missing_ok=True)
                folder.mkdir()
                self._lay_out(folder)
                write_text(state, json.dumps(self._settings, indent=2) + "\n")
            self._files = [os.open(folder / name, os.O_RDWR | os.O_CLOEXEC) for name in self._names()]
            self._log = DoneLog(self.partial / _DONE_NAME)
        except OSError as error:
            self.close()
            if isinstance(error, StorageError):
                raise
            raise StorageError(f"{self.partial}: {error.strerror} ({error.filename})") from error
        except BaseException:
            self.close()
            raise

    def _names(self) -> list[str]:
        return [shard_name(place, self.num_shards) for place in range(self.num_shards)]

    def _check_settings(self, state: Path) -> None:
        try:
            found = json.loads(state.read_text())
        except json.JSONDecodeError as error:
            raise FormatError(f"{state}: not JSON: {error}; remove {self.partial} and start again") from None
        there, now = dict(_leaves(found)), dict(_leaves(self._settings))
        names = [name for name in {**now, **there} if there.get(name) != now.get(name)]
        if names:
            differences = "; ".join(f"{name}: {there.get(name)!r} there, {now.get(name)!r} now" for name in names)
            raise FingerprintError(
                f"{self.partial}: holds an unfinished harvest with other settings ({differences}); "
                "repeat it with its settings, or remove that directory, or name another path"
            )

    def _header(self, place: int, content: str, length: int | None = None) -> bytes:
        first, last = self._starts[place], self._starts[place + 1]
        metadata = {
            "format": "memgraft-values",
            "format_version": "1",
            "keyset": self.keys.fingerprint,
            "shard": f"{place + 1} of {self.num_shards}",
            "first_row": str(first),
            "content": content,
        }
        return shard_header(
            dtype=self.dtype,
            rows=last - first,
            taps=len(self.taps),
            value_dim=self.value_dim,
            metadata=metadata,
            length=length,
        )

    def _lay_out(self, folder: Path) -> None:
        self.keys.save(folder / KEYS_NAME)
        for place, name in enumerate(self._names()):
            header, rows = self._header(place, _UNSEALED), self._starts[place + 1] - self._starts[place]
            file = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                reserve(file, folder / name, self._values_start(place) + rows * self.row_bytes)
                pwrite_all(file, folder / name, header, 0)
                if self._scales is not None:
                    pwrite_all(file, folder / name, self._scales.tobytes(), len(header))
                os.fsync(file)
            finally:
                os.close(file)
        fsync_directory(folder)

    def _scales_bytes(self, place: int) -> int:
        rows = self._starts[place + 1] - self._starts[place]
        shape = self.dtype.scales_shape(rows, len(self.taps), self.value_dim)
        return 0 if shape is None else 4 * shape[0] * shape[1]

    def _values_start(self, place: int) -> int:
        return len(self._header(place, _UNSEALED)) + self._scales_bytes(place)

    def missing(self) -> list[tuple[int, int]]:
        """The half-open row ranges not yet written, ascending."""
        edges = [0, *(edge for part in self._done for edge in part), self.num_rows]
        return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]

    @property
    def num_done(self) -> int:
        """Rows already written."""
        return sum(stop - start for start, stop in self._done)

    def write(self, start_row: int, values: AnyArray) -> None:
        """Writes rows ``start_row ..`` and marks them done once they are on the disk.

        Args:
            start_row: the first row.
            values: ``[n, taps, value_dim]`` float32, float16 or bfloat16 bits (uint16).

        Raises:
            ArgumentError: wrong shape, rows out of range, values that are not finite.
            StorageError: the disk refused.
        """
        values = np.asarray(values)
        expected = f"[n, {len(self.taps)}, {self.value_dim}]"
        if values.ndim != 3 or values.shape[1:] != (len(self.taps), self.value_dim):
            raise ArgumentError(f"values: expected shape {expected}, found {list(values.shape)}")
        stop_row = start_row + len(values)
        if not 0 <= start_row <= stop_row <= self.num_rows:
            raise ArgumentError(f"rows {start_row}..{stop_row}: expected within 0..{self.num_rows}, one row per key")
        if not self._files:
            raise ArgumentError(f"{self.path}: the writer is closed")
        for place, first, part in self._split(start_row, values):
            stored, row_scales = encode(part, self.dtype, self._scales, first_row=self._starts[place] + first)
            name = self.partial / _FOLDER_NAME / shard_name(place, self.num_shards)
            if row_scales is not None:
                scales_start = self._values_start(place) - self._scales_bytes(place)
                at = scales_start + first * 4 * len(self.taps)
                pwrite_all(self._files[place], name, row_scales.astype("<f4").tobytes(), at)
            bytes_ = stored.astype(self.dtype.storage, copy=False).reshape(-1).view(np.uint8)
            pwrite_all(self._files[place], name, bytes_.data, self._values_start(place) + first * self.row_bytes)
            os.fdatasync(self._files[place])
        assert self._log is not None
        self._log.add(start_row, stop_row)

    @property
    def _done(self) -> list[tuple[int, int]]:
        return [] if self._log is None else self._log.done

    def _split(self, start_row: int, values: AnyArray) -> Iterator[tuple[int, int, AnyArray]]:
        """The parts of ``values`` by shard: shard, first row inside it, rows."""
        row, stop = start_row, start_row + len(values)
        while row < stop:
            place = int(np.searchsorted(self._starts, row, side="right")) - 1
            end = min(stop, self._starts[place + 1])
            yield place, row - self._starts[place], values[row - start_row : end - start_row]
            row = end

    def finish(
        self,
        *,
        index: NgramIndex | None = None,
        dropped: Mapping[str, int] | None = None,
        corpus: Mapping[str, Any] | None = None,
        donor: Mapping[str, Any] | None = None,
    ) -> "Bank":
        """Seals the shards, adds index and manifest, renames to the final path and opens the bank.

        Args:
            index: the index of ``keys``; built where not given.
            dropped: keys that were mined and not harvested, by reason.
            corpus: facts of the corpus; the key set's metadata by default.
            donor: more facts of the donor, added to those given at the start.

        Raises:
            ArgumentError: rows are missing.
            FingerprintError: ``index`` belongs to other keys.
        """
        from memgraft.bank.bank import Bank

        if missing := self.missing():
            ranges = ", ".join(f"{a}..{b}" for a, b in missing[:4]) + (", …" if len(missing) > 4 else "")
            raise ArgumentError(f"{self.path}: rows {ranges} are not written yet; write them, then finish")
        index = NgramIndex.build(self.keys) if index is None else index
        if index.keyset_fingerprint != self.keys.fingerprint:
            raise FingerprintError(
                f"index: expected one of key set {self.keys.fingerprint}, found {index.keyset_fingerprint}; "
                "build it from these keys"
            )
        folder = self.partial / _FOLDER_NAME
        index.save(folder / INDEX_NAME)
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
            shards=tuple(self._seal(folder, place) for place in range(self.num_shards)),
            dropped=dict(dropped or {}),
            tool=f"memgraft {__version__}",
        ).sealed()
        write_text(folder / MANIFEST_NAME, manifest.to_json())
        fsync_directory(folder)
        try:
            os.rename(folder, self.path)
        except OSError as error:
            raise StorageError(
                f"{folder}: cannot be renamed to {self.path}: {error.strerror}; rename it by hand"
            ) from error
        fsync_directory(self.path.parent)
        self.close()
        shutil.rmtree(self.partial, ignore_errors=True)
        return Bank.open(self.path)

    def _seal(self, folder: Path, place: int) -> ShardEntry:
        """Puts the content fingerprint into a shard's header."""
        name = folder / shard_name(place, self.num_shards)
        length = self._values_start(place) - self._scales_bytes(place)
        threads = min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2)
        content = fingerprint_content(name, length, threads)
        pwrite_all(self._files[place], name, self._header(place, content, length), 0)
        os.fsync(self._files[place])
        return ShardEntry(
            file=name.name,
            num_rows=self._starts[place + 1] - self._starts[place],
            num_bytes=os.fstat(self._files[place]).st_size,
            content=content,
        )

    def close(self) -> None:
        """Releases files and lock; what was written stays for the next writer."""
        files, self._files = self._files, []
        for file in files:
            os.close(file)
        if self._log is not None:
            self._log.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> "BankWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _leaves(settings: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """What ``settings`` (JSON) say, down to single facts: ``donor.fingerprint``, not the whole of ``donor``."""
    if not isinstance(settings, dict) or not settings:
        yield name, settings
        return
    for key, value in settings.items():
        yield from _leaves(value, f"{name}.{key}" if name else str(key))
