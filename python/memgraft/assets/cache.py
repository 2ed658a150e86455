"""Where fetched and converted files live, and how a file or directory gets its final name."""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from memgraft.errors import StorageError
from memgraft.system import name_beside, sync_file, sync_folder
from memgraft.system import write_beside as write_beside


def cache_directory() -> Path:
    """``$MEMGRAFT_CACHE``, else ``$XDG_CACHE_HOME/memgraft``, else ``~/.cache/memgraft``; it may not exist yet."""
    if named := os.environ.get("MEMGRAFT_CACHE"):
        return Path(named).expanduser().absolute()
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base).expanduser().absolute() / "memgraft"
    return Path.home() / ".cache" / "memgraft"


def sha256_file(path: Path) -> str:
    """SHA-256 of one file's bytes, as 64 hex characters."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_tree(directory: Path) -> str:
    """SHA-256 over ``<sha256>  <relative path>`` lines of all files below ``directory``, sorted by path."""
    lines = [
        f"{sha256_file(path)}  {path.relative_to(directory).as_posix()}\n"
        for path in sorted(directory.rglob("*"), key=lambda path: path.relative_to(directory).as_posix())
        if path.is_file()
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@contextlib.contextmanager
def directory_beside(final: Path) -> Iterator[Path]:
    """An empty directory beside ``final`` that takes its name when the block ends without an error.

    A directory that stands under the final name already is replaced.

    Raises:
        StorageError: the directory cannot be created or renamed.
    """
    temporary = name_beside(final)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
    except OSError as error:
        raise StorageError(
            f"{final.parent}: cannot create a directory there ({error.strerror}); "
            "choose another place with MEMGRAFT_CACHE or --out"
        ) from error
    try:
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                sync_file(path)
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
        sync_folder(final.parent)
    except OSError as error:
        raise StorageError(
            f"{final}: cannot be written ({error.strerror or error}); check the disk and its permissions"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
