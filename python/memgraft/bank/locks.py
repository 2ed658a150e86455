"""Who may write an unfinished bank: one process, or the ranks of one world, each once, each chunk by one of them.

All locks are the kernel's and end with their process. A file system that does not pass them between hosts is noticed by
an owner file of another host that is fresh although its lock can be had.
"""

import contextlib
import fcntl
import json
import os
import socket
import struct
import threading
import time
from pathlib import Path
from typing import Any

from memgraft.errors import ArgumentError, StorageError

BEAT_SECONDS, STALE_SECONDS = 5.0, 60.0
_OWNER = "owner-{:05d}"


def open_lock(path: Path) -> int:
    """A descriptor of the lock file at ``path``.

    Raises:
        StorageError: it cannot be made.
    """
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror}; choose another path") from error


def try_lock(file: int, path: Path, *, shared: bool = False) -> bool:
    """Takes the lock of ``file`` if it is free.

    Raises:
        StorageError: the file system has no locks.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise StorageError(f"{path}: cannot be locked: {error.strerror}; write to a file system with locks") from error
    return True


class OwnerLock:
    """The right to be ``rank`` of ``world_size`` writers; holds until `close` or the end of the process.

    Raises:
        ArgumentError: a running rank has another world size.
        StorageError: the rank is running already, here or, as far as one can tell, on another host.
    """

    def __init__(self, folder: Path, rank: int, world_size: int) -> None:
        self.path = folder / _OWNER.format(rank)
        self._file = open_lock(self.path)
        self._stop, self._held = threading.Event(), False
        try:
            # Others look at this lock for a moment when they start.
            deadline = time.monotonic() + 1
            while not try_lock(self._file, self.path):
                if time.monotonic() > deadline:
                    who = _who(self._read())
                    raise StorageError(f"{folder}: rank {rank} is {who} already; wait for it, or stop it")
                time.sleep(0.05)
            self._refuse_other_hosts(folder, rank)
            self._held = True
            facts = {"host": socket.gethostname(), "pid": os.getpid(), "world_size": world_size}
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, json.dumps(facts).encode(), 0)
            _refuse_other_worlds(folder, rank, world_size)
        except OSError as error:
            self.close()
            if isinstance(error, StorageError):
                raise
            raise StorageError(f"{self.path}: cannot be written: {error.strerror}; free some room or move") from error
        except BaseException:
            self.close()
            raise
        self._thread = threading.Thread(target=self._beat, daemon=True, name="memgraft-owner")
        self._thread.start()

    def _read(self) -> dict[str, Any]:
        return _parse(os.pread(self._file, 4096, 0))

    def _refuse_other_hosts(self, folder: Path, rank: int) -> None:
        """Whoever left without a word on another host may be alive there, where locks do not reach."""
        before = self._read()
        if before.get("host") in (None, socket.gethostname()):
            return
        written = os.fstat(self._file).st_mtime
        # The clock of the file's server, not of this host.
        clock = folder / f".clock-{socket.gethostname()}-{os.getpid()}"
        clock.touch()
        age = clock.stat().st_mtime - written
        clock.unlink()
        if age < STALE_SECONDS:
            raise StorageError(
                f"{self.path}: rank {rank} was {_who(before)} {max(age, 0):.0f} s ago and may still write there; "
                f"if it is dead, try again in {STALE_SECONDS - age:.0f} s, or remove this file"
            )

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            try:
                os.utime(self.path)
            except OSError:
                return

    def close(self) -> None:
        """Gives the rank back; once or more often."""
        self._stop.set()
        if self._file >= 0:
            if self._held:
                with contextlib.suppress(OSError):  # a rest does not hinder the next one of this host
                    os.ftruncate(self._file, 0)
            os.close(self._file)
            self._file = -1


def _refuse_other_worlds(folder: Path, rank: int, world_size: int) -> None:
    for path in sorted(folder.glob("owner-*")):
        number = int(path.name.removeprefix("owner-"))
        if number == rank:
            continue
        file = open_lock(path)
        try:
            # A shared lock, so that two ranks that look at a third do not take each other for it.
            running = not try_lock(file, path, shared=True)
            found = _parse(os.pread(file, 4096, 0))
        finally:
            os.close(file)
        if running and found.get("world_size") not in (None, world_size):
            raise ArgumentError(
                f"world_size {world_size}: rank {number} is {_who(found)} with a world of {found['world_size']}; start "
                "all ranks with one world size, or wait for the others to end"
            )


def _parse(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _who(facts: dict[str, Any]) -> str:
    return f"running as process {facts.get('pid', '?')} on {facts.get('host', '?')}"


class Claims:
    """Which chunk a writer is at, as locks on single bytes of one file; others see what is taken."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = open_lock(path)

    def take(self, number: int) -> bool:
        """Whether chunk ``number`` is this writer's now."""
        try:
            self._lock(number, fcntl.F_WRLCK)
        except (BlockingIOError, PermissionError):
            return False
        except OSError as error:
            raise StorageError(f"{self._path}: cannot be locked: {error.strerror}") from error
        return True

    def give_back(self, number: int) -> None:
        """Ends the claim on ``number``."""
        self._lock(number, fcntl.F_UNLCK)

    def _lock(self, number: int, kind: int) -> None:
        command = getattr(fcntl, "F_OFD_SETLK", None)
        if command is None:  # not Linux: locks of the process, which writers of one process share
            operation = fcntl.LOCK_UN if kind == fcntl.F_UNLCK else fcntl.LOCK_EX | fcntl.LOCK_NB
            fcntl.lockf(self._file, operation, 1, number)
        else:
            fcntl.fcntl(self._file, command, struct.pack("hhqqi", kind, os.SEEK_SET, number, 1, 0))

    def close(self) -> None:
        """Gives everything back; once or more often."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def wait_for_lock(file: int, path: Path, seconds: float = 0.05) -> None:
    """Takes the lock of ``file``, waiting for whoever has it; Ctrl-C ends the wait."""
    while not try_lock(file, path):
        time.sleep(seconds)


def unlock(file: int) -> None:
    """Gives the lock of ``file`` back."""
    fcntl.flock(file, fcntl.LOCK_UN)
