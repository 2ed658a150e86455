"""Whether the files of a bank belong together, from their headers alone."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from memgraft._core import ValueTable
from memgraft.bank.manifest import MANIFEST_NAME, Manifest
from memgraft.bank.overlay import Layer
from memgraft.errors import FingerprintError, FormatError
from memgraft.tokenizer import other_mapping


def expect_same(path: Path, what: str, expected: str, found: str) -> None:
    """Refuses a file whose fingerprint is not the one that the manifest names.

    Raises:
        FingerprintError: they differ.
    """
    if expected != found:
        raise FingerprintError(f"{path}: expected {what} {expected}, found {found}: the file is of another bank")


def channel_scales_of(layer: Layer) -> bytes:
    """The channel scales of a bank, from its shards' headers.

    Raises:
        FormatError: its shards disagree.
    """
    table = ValueTable.open([layer.path / shard.file for shard in layer.manifest.shards], 0, 1)
    return table.channel_scales().tobytes()


def check_table(folder: Path, manifest: Manifest, table: ValueTable, shards: Sequence[dict[str, Any]]) -> None:
    """Refuses ``shards`` of ``table`` that are not the ones the manifest names, in its order and of its shape.

    Raises:
        FingerprintError: a shard is of another bank.
        FormatError: a shard has another shape, length or place.
    """
    found_shape = (table.dtype, table.taps, table.value_dim)
    expected_shape = (manifest.dtype, len(manifest.taps), manifest.value_dim)
    if found_shape != expected_shape:
        raise FormatError(
            f"{folder}: expected values (dtype, taps, value_dim) = {expected_shape}, found {found_shape}: "
            "the shards are of another bank"
        )
    first_row = 0
    for entry, shard in zip(manifest.shards, shards, strict=True):
        path, metadata = folder / entry.file, shard["metadata"]
        expect_same(path, "values of key set", manifest.keyset, metadata.get("keyset", "none"))
        expect_same(path, "content", entry.content, metadata.get("content", "none"))
        if metadata.get("format_version") != "1":
            raise FormatError(f"{path}: expected values format 1, found {metadata.get('format_version')}")
        if shard["num_rows"] != entry.num_rows or metadata.get("first_row") != str(first_row):
            raise FormatError(
                f"{path}: expected {entry.num_rows} rows from row {first_row}, found {shard['num_rows']} from row "
                f"{metadata.get('first_row')}: the file is of another bank"
            )
        if shard["num_bytes"] != entry.num_bytes:
            raise FormatError(f"{path}: expected {entry.num_bytes} bytes, found {shard['num_bytes']}; restore the file")
        first_row += entry.num_rows
    if first_row != manifest.num_rows:
        raise FormatError(f"{folder / MANIFEST_NAME}: expected {manifest.num_rows} rows in shards, found {first_row}")


def check_settings(state: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Refuses to go on with the unfinished bank beside ``state`` under other settings than it was begun with.

    Returns:
        The settings that it was begun with.

    Raises:
        FormatError: ``state`` is not JSON.
        FingerprintError: settings differ; names each with both values.
    """
    try:
        found = json.loads(state.read_text())
    except json.JSONDecodeError as error:
        raise FormatError(f"{state}: not JSON: {error}; remove {state.parent} and start again") from None
    known = [facts.get("tokenizer") or {} for facts in (found, settings)]
    named = all("fingerprint" in facts for facts in known)
    if named and not other_mapping(*known) and known[0].get("vocab_size") == known[1].get("vocab_size"):
        # The tokenizer's file may have been saved again meanwhile.
        settings = {**settings, "tokenizer": found.get("tokenizer")}
    there, now = dict(_leaves(found)), dict(_leaves(settings))
    names = [name for name in {**now, **there} if there.get(name) != now.get(name)]
    if names:
        differences = "; ".join(f"{name}: {there.get(name)!r} there, {now.get(name)!r} now" for name in names)
        raise FingerprintError(
            f"{state.parent}: holds an unfinished harvest with other settings ({differences}); "
            "repeat it with its settings, or remove that directory, or name another path"
        )
    return dict(found)


def _leaves(settings: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """What ``settings`` (JSON) say, down to single facts: ``donor.fingerprint``, not the whole of ``donor``."""
    if not isinstance(settings, dict) or not settings:
        yield name, settings
        return
    for key, value in settings.items():
        yield from _leaves(value, f"{name}.{key}" if name else str(key))
