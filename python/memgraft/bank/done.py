"""Which rows of an unfinished bank are on the disk."""

import os
import zlib
from pathlib import Path

from memgraft.bank.files import pwrite_all

Ranges = list[tuple[int, int]]


class DoneLog:
    """A file of done-marks, one line a chunk, beside those of other writers, and the ranges that all make up.

    Attributes:
        done: half-open ranges, ascending, apart.
    """

    def __init__(self, path: Path) -> None:
        """Opens or makes the log; a torn last line, left by a kill, is cut off.

        Raises:
            OSError: the file cannot be opened.
        """
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        marks, good = _marks(_read(self._file, 0))
        os.ftruncate(self._file, good)
        self.done = union(marks)
        self._others: dict[Path, int] = {}
        self.refresh()

    def refresh(self) -> None:
        """Reads what other writers have marked since."""
        found: Ranges = []
        for path in self.path.parent.glob("done*.log"):
            if path == self.path:
                continue
            try:
                file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                marks, good = _marks(_read(file, self._others.get(path, 0)))
            finally:
                os.close(file)
            self._others[path] = self._others.get(path, 0) + good
            found += marks
        if found:
            self.done = union(self.done + found)

    def add(self, start: int, stop: int) -> None:
        """Marks rows done that have been synced.

        Raises:
            StorageError: the disk refused.
        """
        mark = f"{start} {stop}".encode()
        pwrite_all(self._file, self.path, mark + b" " + _check(mark) + b"\n", None)
        os.fdatasync(self._file)
        self.done = merge(self.done, start, stop)

    def close(self) -> None:
        """Closes the file; once or more often."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _read(file: int, start: int) -> bytes:
    text = b""
    while block := os.pread(file, 1 << 20, start + len(text)):
        text += block
    return text


def _marks(text: bytes) -> tuple[Ranges, int]:
    """The ranges of whole lines, and the bytes of these lines."""
    marks, good = [], 0
    for line in text.splitlines(keepends=True):
        parts = line.split()
        if not line.endswith(b"\n") or len(parts) != 3 or parts[2] != _check(b" ".join(parts[:2])):
            break
        marks.append((int(parts[0]), int(parts[1])))
        good += len(line)
    return marks, good


def _check(mark: bytes) -> bytes:
    """What ends a done-mark, so that a torn one is told from a whole one."""
    return b"%08x" % zlib.crc32(mark)


def union(parts: Ranges) -> Ranges:
    """The ranges that ``parts`` make up: ascending, apart."""
    joined: list[list[int]] = []
    for start, stop in sorted(part for part in parts if part[0] < part[1]):
        if joined and start <= joined[-1][1]:
            joined[-1][1] = max(joined[-1][1], stop)
        else:
            joined.append([start, stop])
    return [(start, stop) for start, stop in joined]


def merge(done: Ranges, start: int, stop: int) -> Ranges:
    """``done`` (ascending, apart) with ``start..stop`` added."""
    return union([*done, (start, stop)])
