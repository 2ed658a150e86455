"""The parts of one bank directory but its values, opened and checked to belong together."""

from pathlib import Path

from memgraft.bank.checks import expect_same
from memgraft.bank.manifest import INDEX_NAME, KEYS_NAME, MANIFEST_NAME, Manifest
from memgraft.errors import FormatError, StorageError
from memgraft.index import NgramIndex
from memgraft.keyset import KeySet


def open_parts(folder: Path) -> tuple[Path, Manifest, KeySet, NgramIndex]:
    """Manifest, keys and index of one bank directory, from their headers.

    Raises:
        FormatError: a file is damaged, or the manifest names no plain file.
        FingerprintError: a file is of another bank.
        StorageError: a file is missing or cannot be read.
    """
    manifest = Manifest.read(folder / MANIFEST_NAME)
    for name in (KEYS_NAME, INDEX_NAME, *(shard.file for shard in manifest.shards)):
        if Path(name).name != name:
            raise FormatError(f"{folder / MANIFEST_NAME}: {name!r} is not a plain file name; restore the file")
        if not (folder / name).is_file():
            raise StorageError(f"{folder / name}: not found; the bank is incomplete: restore the file")
    keys = KeySet.open(folder / KEYS_NAME)
    expect_same(folder / KEYS_NAME, "key set", manifest.keyset, keys.fingerprint)
    index = NgramIndex.open(folder / INDEX_NAME)
    expect_same(folder / INDEX_NAME, "index of key set", manifest.keyset, index.keyset_fingerprint)
    expect_same(folder / INDEX_NAME, "index", manifest.index, index.fingerprint)
    if len(keys) != manifest.num_rows:
        raise FormatError(f"{folder}: expected one row per key, found {manifest.num_rows} rows, {len(keys)} keys")
    return folder, manifest, keys, index
