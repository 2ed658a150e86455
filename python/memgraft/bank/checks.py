"""Whether the files of a bank belong together, from their headers alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memgraft._core import ValueTable
from memgraft.bank.manifest import MANIFEST_NAME, Manifest
from memgraft.bank.overlay import Layer
from memgraft.errors import FingerprintError, FormatError


def expect_same(path: Path, what: str, expected: str, found: str) -> None:
    """Refuses a file whose fingerprint is not the one that the manifest names.

    Raises:
        FingerprintError: they differ.
    """
    if expected != found:
        raise FingerprintError(f"{path}: expected {what} {expected}, found {found}: the file is of another bank")


def check_scales(layers: Sequence[Layer], table: ValueTable) -> None:
    """Refuses int8 banks on top of each other whose channel scales differ: one batch has one set of scales.

    Raises:
        FingerprintError: they differ.
    """
    if len(layers) > 1 and table.dtype == "int8":
        try:
            table.channel_scales()
        except FormatError as error:
            raise FingerprintError(
                f"{error}; an int8 overlay takes the channel scales of its base: harvest it with `memgraft extend`, or "
                "store both banks as fp8_e4m3 or bf16"
            ) from None


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
