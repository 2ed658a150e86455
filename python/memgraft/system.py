"""What depends on the system: how files are put in place, how many threads a process may use, where it may write."""

import errno
import functools
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar, cast

from memgraft.errors import StorageError

_NO_FOLDER_SYNC = {
    errno.EINVAL,
    errno.ENOSYS,
    errno.EACCES,
    errno.EPERM,
    errno.EBADF,
    errno.EISDIR,
    errno.EOPNOTSUPP,
    errno.ENOTSUP,
}
"""What file systems say that cannot make a folder durable, or let nobody open one; the names in it are written anyway.
"""
CGROUPS = Path("/sys/fs/cgroup")
"""Where the system shows control groups."""


T = TypeVar("T")


def sync_folder(path: Path) -> None:
    """Makes renames and new names inside ``path`` durable, where its file system can.

    Raises:
        OSError: the device failed.
    """
    try:
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


def sync_file(path: Path) -> None:
    """Makes the bytes of a file durable.

    Raises:
        OSError: the device failed.
    """
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def name_beside(path: Path, suffix: str = "") -> Path:
    """The hidden name beside ``path`` under which this process writes what is to take its place."""
    return path.with_name(f".{path.name}{suffix}.tmp-{os.getpid()}")


def write_beside(path: Path, data: bytes) -> None:
    """Writes ``data`` to ``path``, in a folder that is made where it is missing: beside, synced, renamed.

    Raises:
        StorageError: the system refused.
    """
    way_out = "free some space or choose a writable place"
    made_folder(path.parent, way_out)
    with written_beside(path, way_out) as beside:
        beside.write_bytes(data)


@contextmanager
def written_beside(path: Path, way_out: str = "free some space or choose another place") -> Iterator[Path]:
    """Gives a name beside ``path`` to write to; the file is synced and takes the place of ``path`` at the end.

    After an error in the block nothing is left, and ``path`` is as it was.

    Raises:
        StorageError: the system refused to sync or rename, or refused a write in the block (an OSError there).
    """
    beside = name_beside(path)
    try:
        yield beside
        sync_file(beside)
        os.replace(beside, path)
        sync_folder(path.parent)
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror or error}; {way_out}") from error
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Tries whether a file can be made in ``folder``: permission bits are no answer on network and user-mapped mounts.

    Raises:
        StorageError: it cannot.
    """
    try:
        with tempfile.TemporaryFile(dir=folder, prefix=".memgraft-"):
            pass
    except OSError as error:
        raise StorageError(
            f"{folder}: expected a folder that can be written to: {error.strerror or error}; choose another"
        ) from error


def made_folder(folder: Path, way_out: str = "name another with temporary=") -> Path:
    """``folder``, made if it is missing.

    Raises:
        StorageError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder}: cannot make the folder: {error.strerror or error}; {way_out}") from error
    return folder


@contextmanager
def temporary_folder(parent: str | os.PathLike[str] | None) -> Iterator[str]:
    """A folder that is removed at the end, in ``parent`` (made if missing) or where the system puts such things.

    Raises:
        StorageError: nothing can be written there.
    """
    where = Path(tempfile.gettempdir()) if parent is None else made_folder(Path(parent))
    check_writable(where)
    with tempfile.TemporaryDirectory(prefix="memgraft-", dir=where) as folder:
        yield folder


COPY_THREADS = 4
"""Threads of copies and of hashes of files, which wait for the memory or the disk: more bring nothing."""


def usable_processors() -> list[int] | None:
    """The processors that this process may run on, ascending; None where the system does not say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def num_threads(most: int | None = None) -> int:
    """Threads that this process may use: its processors, less what its control group allows; at least 1.

    Args:
        most: the answer is not above this.
    """
    processors = usable_processors()
    # `os.cpu_count` reads a file, so it is asked only where nothing else says.
    bounds = [os.cpu_count() or 1 if processors is None else len(processors)]
    if hasattr(os, "process_cpu_count"):  # from Python 3.13 on, where a user may say less
        bounds.append(os.process_cpu_count() or 1)
    if (quota := processor_quota()) is not None:
        bounds.append(max(1, int(quota)))
    return min(bound for bound in (*bounds, _limit, most) if bound is not None)


_limit: int | None = None


def limit_threads(most: int | None) -> None:
    """Bounds the threads of calls that name no number, in this process; None takes the bound away."""
    from memgraft import _core

    global _limit
    _limit = most
    _core.limit_threads(most)


@functools.cache
def processor_quota() -> float | None:
    """Processors that the control group of this process may use at a time, None where it is not limited.

    The files are read once a process, because a decoding step that asks for them takes twice as long.
    """
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    quotas = []
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers == "":
            group = CGROUPS / name.lstrip("/")
            above = [folder for folder in (group, *group.parents) if CGROUPS in (folder, *folder.parents)]
            quotas += [_read_quota(folder / "cpu.max") for folder in above]
        elif "cpu" in controllers.split(","):
            for folder in (CGROUPS / controllers / name.lstrip("/"), CGROUPS / "cpu"):
                quotas.append(_read_quota(folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us"))
    return min((quota for quota in quotas if quota is not None), default=None)


def _read_quota(*files: Path) -> float | None:
    try:
        words = " ".join(file.read_text(encoding="utf-8") for file in files).split()
        quota, period = float(words[0]), float(words[1])
    except (OSError, ValueError, IndexError):
        return None  # "max", or no such controller
    return quota / period if quota > 0 < period else None


def interruptible(work: Callable[[], T]) -> T:
    """Runs native code in a thread, so that Ctrl-C is answered while it goes on; the thread is then left to itself.

    Raises:
        BaseException: what ``work`` raised.
    """
    done = threading.Event()
    outcome: list[tuple[bool, Any]] = []

    def run() -> None:
        try:
            outcome.append((True, work()))
        except BaseException as error:
            outcome.append((False, error))
        finally:
            done.set()

    threading.Thread(target=run, name="memgraft-tokenize", daemon=True).start()
    # A signal may reach another thread, and then wakes nobody here.
    while not done.wait(0.05):
        pass
    succeeded, result = outcome[0]
    if not succeeded:
        raise result
    return cast(T, result)
