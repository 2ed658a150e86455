"""Writing a bank so that a kill loses nothing finished and nothing unfinished has the final name."""

import json
import os
import shutil
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from memgraft._core import __version__, fingerprint_content
from memgraft.bank.checks import check_settings
from memgraft.bank.done import DoneLog
from memgraft.bank.dtypes import AnyArray, FloatArray, encode, value_dtype
from memgraft.bank.files import fsync_directory, pwrite_all, reserve, write_bytes, write_text
from memgraft.bank.locks import Claims, OwnerLock, open_lock, try_lock, wait_for_lock
from memgraft.bank.manifest import INDEX_NAME, KEYS_NAME, MANIFEST_NAME, Manifest, ShardEntry
from memgraft.bank.provenance import ORIGINS_NAME, Origins
from memgraft.bank.shards import ShardLayout, runs
from memgraft.errors import ArgumentError, FingerprintError, StorageError
from memgraft.index import NgramIndex
from memgraft.keyset import KeySet
from memgraft.system import num_threads

if TYPE_CHECKING:
    from memgraft.bank.bank import Bank

_STATE_NAME = "state.json"
_DONE_NAME = "done.log"
_LOCK_NAME, _LAYOUT_LOCK_NAME, _SEAL_LOCK_NAME, _CLAIMS_NAME = "lock", "layout.lock", "seal.lock", "claims"
_FOLDER_NAME = "bank"


class BankWriter:
    """Writes the values of a key set, in any order of chunks, resumable after a kill, by one process or several.

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
        if not 0 <= rank < world_size:
            raise ArgumentError(f"rank {rank}: expected 0 to {world_size - 1} in a world of {world_size}")
        self.rank, self.world_size = rank, world_size
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
        self._refuse_existing()
        self._settings = self._describe()
        self._files: list[int] = []
        self._log: DoneLog | None = None
        self._lock = self._seal_lock = -1
        self._owner: OwnerLock | None = None
        self._claims: Claims | None = None
        self._open_partial()

    def _refuse_existing(self) -> None:
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise ArgumentError(f"{self.path}: exists; open it with Bank.open, or remove it, or name another path")

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
            "order": None if self._order is None else zlib.crc32(np.ascontiguousarray(self._order, "<i8").tobytes()),
            "tool": __version__,
        }
        described: dict[str, Any] = json.loads(json.dumps(settings))
        return described

    def _open_partial(self) -> None:
        folder = self.partial / _FOLDER_NAME
        try:
            self.partial.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{self.partial}: cannot be written: {error.strerror}; choose another path") from error
        self._lock = open_lock(self.partial / _LOCK_NAME)
        try:
            if not try_lock(self._lock, self.partial, shared=self.world_size > 1):
                raise StorageError(f"{self.partial}: another process is writing this bank; wait for it or stop it")
            self._owner = OwnerLock(self.partial, self.rank, self.world_size)
            self._lay_out_once(folder)
            self._files = [os.open(folder / name, os.O_RDWR | os.O_CLOEXEC) for name in self._layout.names()]
            self._claims = Claims(self.partial / _CLAIMS_NAME)
            name = _DONE_NAME if self.world_size == 1 else f"done-{self.rank:05d}.log"
            self._log = DoneLog(self.partial / name)
        except OSError as error:
            self.close()
            if isinstance(error, StorageError):
                raise
            raise StorageError(f"{self.partial}: {error.strerror} ({error.filename})") from error
        except BaseException:
            self.close()
            raise

    def _lay_out_once(self, folder: Path) -> None:
        """Makes the files, or finds them made with the same settings; of several writers one does, the others wait."""
        state, path = self.partial / _STATE_NAME, self.partial / _LAYOUT_LOCK_NAME
        lock = open_lock(path)
        try:
            wait_for_lock(lock, path)
            self._refuse_existing()
            if state.exists():
                check_settings(state, self._settings)
                return
            shutil.rmtree(folder, ignore_errors=True)
            for log in self.partial.glob("done*.log"):
                log.unlink()
            folder.mkdir()
            self._lay_out(folder)
            write_text(state, json.dumps(self._settings, indent=2) + "\n")
        finally:
            os.close(lock)

    def _lay_out(self, folder: Path) -> None:
        self.keys.save(folder / KEYS_NAME)
        for place, name in enumerate(self._layout.names()):
            file = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                reserve(file, folder / name, self._layout.num_bytes(place))
                pwrite_all(file, folder / name, self._layout.header(place), 0)
                if self._scales is not None:
                    pwrite_all(file, folder / name, self._scales.tobytes(), self._layout.data_start(place))
                os.fsync(file)
            finally:
                os.close(file)
        fsync_directory(folder)

    def missing(self) -> list[tuple[int, int]]:
        """The half-open ranges (of rows, or of places in ``order``) not yet written, ascending."""
        edges = [0, *(edge for part in self._done for edge in part), self.num_rows]
        return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]

    @property
    def num_done(self) -> int:
        """Rows already written."""
        return sum(stop - start for start, stop in self._done)

    def refresh(self) -> None:
        """Learns what the other writers have finished."""
        if self._log is not None:
            self._log.refresh()

    def claim(self, start: int, stop: int) -> bool:
        """Takes the chunk ``start .. stop`` for this writer, until `give_back` or the end of its process.

        Returns:
            False where another writer is at it or has finished it. All must cut their chunks alike.
        """
        assert self._claims is not None
        if not self._claims.take(start):
            return False
        self.refresh()
        if any(first <= start and stop <= last for first, last in self._done):
            self._claims.give_back(start)
            return False
        return True

    def give_back(self, start: int) -> None:
        """Ends the claim on the chunk that begins at ``start``."""
        assert self._claims is not None
        self._claims.give_back(start)

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
        stop = start + len(values)
        if not 0 <= start <= stop <= self.num_rows:
            raise ArgumentError(f"rows {start}..{stop}: expected within 0..{self.num_rows}, one row per key")
        if not self._files:
            raise ArgumentError(f"{self.path}: the writer is closed")
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
        self._store(parts)
        assert self._log is not None
        self._log.add(start, stop)

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
        stop_row = start_row + len(stored)
        if not 0 <= start_row <= stop_row <= self.num_rows:
            raise ArgumentError(f"rows {start_row}..{stop_row}: expected within 0..{self.num_rows}, one row per key")
        if not self._files:
            raise ArgumentError(f"{self.path}: the writer is closed")
        rows = np.arange(start_row, stop_row)
        self._store(
            (place, rows[a:b], stored[a:b], None if row_scales is None else row_scales[a:b])
            for place, a, b in self._layout.split(rows)
        )
        assert self._log is not None
        self._log.add(start_row, stop_row)

    def _store(self, parts: Iterable[tuple[int, npt.NDArray[np.int64], AnyArray, FloatArray | None]]) -> None:
        """Writes (shard, rows, stored values, row scales), and syncs each shard."""
        for place, part, stored, row_scales in parts:
            inside = part - self._layout.starts[place]
            if row_scales is not None:
                self._put(place, self._layout.data_start(place), inside, row_scales.astype("<f4"))
            self._put(place, self._layout.values_start(place), inside, stored.astype(self.dtype.storage, copy=False))
            os.fdatasync(self._files[place])

    @property
    def _done(self) -> list[tuple[int, int]]:
        return [] if self._log is None else self._log.done

    def _put(self, place: int, begin: int, inside: npt.NDArray[np.int64], lines: AnyArray) -> None:
        """Writes one line for each of the ascending rows ``inside`` the shard, runs of neighbours at once."""
        name = self.partial / _FOLDER_NAME / self._layout.names()[place]
        view = np.ascontiguousarray(lines).reshape(-1).view(np.uint8).data
        size = len(view) // len(inside)
        for first, last in runs(inside):
            at = begin + int(inside[first]) * size
            pwrite_all(self._files[place], name, view[first * size : last * size], at)

    def try_seal(self) -> bool:
        """Whether this writer is the one to call `finish`: all rows are written and no other is sealing."""
        self.refresh()
        if self.missing() or self.path.exists():
            return False
        if self._seal_lock < 0:
            try:
                self._seal_lock = open_lock(self.partial / _SEAL_LOCK_NAME)
            except StorageError:
                return False  # sealed and gone
        return try_lock(self._seal_lock, self.partial) and not self.path.exists()

    def finish(
        self,
        *,
        index: NgramIndex | None = None,
        dropped: Mapping[str, int] | None = None,
        corpus: Mapping[str, Any] | None = None,
        donor: Mapping[str, Any] | None = None,
        origins: Origins | None = None,
        files: Mapping[str, bytes] | None = None,
    ) -> "Bank":
        """Seals the shards, adds index and manifest, renames to the final path and opens the bank.

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
        if origins is not None:
            write_bytes(folder / ORIGINS_NAME, origins.to_bytes())
        for name, content in (files or {}).items():
            write_bytes(folder / name, content)
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
        shutil.rmtree(self.partial, ignore_errors=True)
        self.close()
        return Bank.open(self.path)

    def _seal(self, folder: Path, place: int) -> ShardEntry:
        """Puts the content fingerprint into a shard's header."""
        name = folder / self._layout.names()[place]
        length = self._layout.data_start(place)
        content = fingerprint_content(name, length, num_threads(most=4))
        pwrite_all(self._files[place], name, self._layout.header(place, content, length), 0)
        os.fsync(self._files[place])
        return ShardEntry(
            file=name.name,
            num_rows=self._layout.num_rows(place),
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
        if self._claims is not None:
            self._claims.close()
        if self._owner is not None:
            self._owner.close()
        for lock in (self._lock, self._seal_lock):
            if lock >= 0:
                os.close(lock)
        self._lock = self._seal_lock = -1

    def __enter__(self) -> "BankWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
