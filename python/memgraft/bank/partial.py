"""The folder of an unfinished bank: laid out once, locked, every finished row logged, shared by all its writers."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from memgraft._core import fingerprint_content
from memgraft.bank.checks import check_settings
from memgraft.bank.done import DoneLog, Ranges
from memgraft.bank.dtypes import AnyArray, FloatArray
from memgraft.bank.files import pwrite_all, reserve, write_text
from memgraft.bank.locks import Claims, OwnerLock, open_lock, try_lock, wait_for_lock
from memgraft.bank.manifest import KEYS_NAME, ShardEntry
from memgraft.bank.shards import ShardLayout, runs
from memgraft.errors import ArgumentError, StorageError
from memgraft.keyset import KeySet
from memgraft.system import COPY_THREADS, num_threads, sync_folder

_STATE_NAME = "state.json"
_DONE_NAME = "done.log"
_LOCK_NAME, _LAYOUT_LOCK_NAME, _SEAL_LOCK_NAME, _CLAIMS_NAME = "lock", "layout.lock", "seal.lock", "claims"
_FOLDER_NAME = "bank"


class Partial:
    """``<final>.partial``, open for one writer of a bank.

    Args:
        final: the bank directory to be.
        keys: what the folder's key set holds.
        layout: where rows lie in the shards.
        scales: channel scales at the head of each shard, or None.
        settings: what the bank is written with (JSON); another writer with others is refused.
        rank: this writer among ``world_size``.
        world_size: how many write at once.

    Attributes:
        final: the bank directory to be.
        path: ``<final>.partial``.
        folder: inside it, what will be renamed to ``final``.
        settings: those that it was begun with.

    Raises:
        ArgumentError: ``final`` exists, or a running rank has another world size.
        FingerprintError: the folder holds another harvest.
        StorageError: no room, no permission, or another process is writing.
    """

    def __init__(
        self,
        final: Path,
        *,
        keys: KeySet,
        layout: ShardLayout,
        scales: FloatArray | None,
        settings: Mapping[str, Any],
        rank: int,
        world_size: int,
    ) -> None:
        self.final = final
        self.path = final.with_name(final.name + ".partial")
        self.folder = self.path / _FOLDER_NAME
        self._keys, self._layout, self._scales = keys, layout, scales
        self.settings = settings
        self._refuse_existing()
        self._files: list[int] = []
        self._log: DoneLog | None = None
        self._lock = self._seal_lock = -1
        self._owner: OwnerLock | None = None
        self._claims: Claims | None = None
        self._open(rank, world_size)

    def _refuse_existing(self) -> None:
        if self.final.exists() and (not self.final.is_dir() or any(self.final.iterdir())):
            raise ArgumentError(f"{self.final}: exists; open it with Bank.open, or remove it, or name another path")

    def _open(self, rank: int, world_size: int) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{self.path}: cannot be written: {error.strerror}; choose another path") from error
        self._lock = open_lock(self.path / _LOCK_NAME)
        try:
            if not try_lock(self._lock, self.path, shared=world_size > 1):
                raise StorageError(f"{self.path}: another process is writing this bank; wait for it or stop it")
            self._owner = OwnerLock(self.path, rank, world_size)
            self._lay_out_once()
            self._files = [os.open(self.folder / name, os.O_RDWR | os.O_CLOEXEC) for name in self._layout.names()]
            self._claims = Claims(self.path / _CLAIMS_NAME)
            name = _DONE_NAME if world_size == 1 else f"done-{rank:05d}.log"
            self._log = DoneLog(self.path / name)
        except OSError as error:
            self.close()
            if isinstance(error, StorageError):
                raise
            raise StorageError(f"{self.path}: {error.strerror} ({error.filename})") from error
        except BaseException:
            self.close()
            raise

    def _lay_out_once(self) -> None:
        """Makes the files, or finds them made with the same settings; of several writers one does, the others wait."""
        state, path = self.path / _STATE_NAME, self.path / _LAYOUT_LOCK_NAME
        lock = open_lock(path)
        try:
            wait_for_lock(lock, path)
            self._refuse_existing()
            if state.exists():
                self.settings = check_settings(state, self.settings)
                return
            shutil.rmtree(self.folder, ignore_errors=True)
            for log in self.path.glob("done*.log"):
                log.unlink()
            self.folder.mkdir()
            self._lay_out()
            write_text(state, json.dumps(self.settings, indent=2) + "\n")
        finally:
            os.close(lock)

    def _lay_out(self) -> None:
        self._keys.save(self.folder / KEYS_NAME)
        for place, name in enumerate(self._layout.names()):
            file = os.open(self.folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                reserve(file, self.folder / name, self._layout.num_bytes(place))
                pwrite_all(file, self.folder / name, self._layout.header(place), 0)
                if self._scales is not None:
                    pwrite_all(file, self.folder / name, self._scales.tobytes(), self._layout.data_start(place))
                os.fsync(file)
            finally:
                os.close(file)
        sync_folder(self.folder)

    @property
    def done(self) -> Ranges:
        """Half-open ranges that are on the disk, ascending, apart; empty once closed for good."""
        return [] if self._log is None else self._log.done

    @property
    def is_open(self) -> bool:
        """Whether rows can be written."""
        return bool(self._files)

    def refresh(self) -> None:
        """Learns what the other writers have finished."""
        if self._log is not None:
            self._log.refresh()

    def mark(self, start: int, stop: int) -> None:
        """Logs that ``start .. stop`` is on the disk."""
        assert self._log is not None
        self._log.add(start, stop)

    def claim(self, start: int, stop: int) -> bool:
        """Takes the chunk ``start .. stop``; False where another writer is at it or has finished it."""
        assert self._claims is not None
        if not self._claims.take(start):
            return False
        self.refresh()
        if any(first <= start and stop <= last for first, last in self.done):
            self._claims.give_back(start)
            return False
        return True

    def give_back(self, start: int) -> None:
        """Ends the claim on the chunk that begins at ``start``."""
        assert self._claims is not None
        self._claims.give_back(start)

    def put(
        self, place: int, rows: npt.NDArray[np.int64], stored: AnyArray, row_scales: FloatArray | None = None
    ) -> None:
        """Writes ascending ``rows`` of the bank, all in shard ``place``, and syncs the shard.

        Args:
            place: the shard.
            rows: ``(n,)``.
            stored: ``(n, taps, value_dim)``, the storage type or one that becomes it without loss.
            row_scales: fp32 ``(n, taps)`` where the storage type has a scale for each row.
        """
        inside = rows - self._layout.starts[place]
        if row_scales is not None:
            self._put_lines(place, self._layout.data_start(place), inside, row_scales.astype("<f4"))
        stored = stored.astype(self._layout.dtype.storage, copy=False)
        self._put_lines(place, self._layout.values_start(place), inside, stored)
        os.fdatasync(self._files[place])

    def _put_lines(self, place: int, begin: int, inside: npt.NDArray[np.int64], lines: AnyArray) -> None:
        """Writes one line for each of the ascending rows ``inside`` the shard, runs of neighbours at once."""
        name = self.folder / self._layout.names()[place]
        view = np.ascontiguousarray(lines).reshape(-1).view(np.uint8).data
        size = len(view) // len(inside)
        for first, last in runs(inside):
            at = begin + int(inside[first]) * size
            pwrite_all(self._files[place], name, view[first * size : last * size], at)

    def try_seal(self) -> bool:
        """Whether this writer is the one to seal; no other is sealing or has sealed."""
        if self.final.exists():
            return False
        if self._seal_lock < 0:
            try:
                self._seal_lock = open_lock(self.path / _SEAL_LOCK_NAME)
            except StorageError:
                return False  # sealed and gone
        return try_lock(self._seal_lock, self.path) and not self.final.exists()

    def seal_shard(self, place: int) -> ShardEntry:
        """Puts the content fingerprint into a shard's header."""
        name = self.folder / self._layout.names()[place]
        length = self._layout.data_start(place)
        content = fingerprint_content(name, length, num_threads(most=COPY_THREADS))
        pwrite_all(self._files[place], name, self._layout.header(place, content, length), 0)
        os.fsync(self._files[place])
        return ShardEntry(
            file=name.name,
            num_rows=self._layout.num_rows(place),
            num_bytes=os.fstat(self._files[place]).st_size,
            content=content,
        )

    def publish(self) -> None:
        """Renames the folder to the final path, removes the rest and closes.

        Raises:
            StorageError: it cannot be renamed.
        """
        sync_folder(self.folder)
        try:
            os.rename(self.folder, self.final)
        except OSError as error:
            raise StorageError(
                f"{self.folder}: cannot be renamed to {self.final}: {error.strerror}; rename it by hand"
            ) from error
        sync_folder(self.final.parent)
        shutil.rmtree(self.path, ignore_errors=True)
        self.close()

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
