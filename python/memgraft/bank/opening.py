"""Bank directories, opened and checked: that the parts of each belong together, and the banks of a stack too."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from memgraft._core import ValueTable
from memgraft.bank.checks import channel_scales_of, check_table, expect_same
from memgraft.bank.dtypes import DTYPES
from memgraft.bank.manifest import INDEX_NAME, KEYS_NAME, MANIFEST_NAME, Manifest
from memgraft.bank.mixed import AnyTable, MixedTable
from memgraft.bank.overlay import Layer, Where, bank_paths, check_layers, stacked_manifest
from memgraft.bank.stacked import StackedIndex, StackedKeys
from memgraft.errors import ArgumentError, FormatError, StorageError
from memgraft.index import NgramIndex
from memgraft.keyset import KeySet


def _open_parts(folder: Path) -> tuple[Path, Manifest, KeySet, NgramIndex]:
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


def open_stack(
    where: Where, *, resident: bool | int, threads: int, cold_reader: str
) -> tuple[Path, Manifest, KeySet, NgramIndex, AnyTable, list[Layer]]:
    """One bank, or several from the base up as one; arguments and errors as for `memgraft.Bank.open`.

    Returns:
        The base's directory, manifest, keys, index and values of all, and the layers.
    """
    if not isinstance(resident, int | np.integer) or resident < 0:
        raise ArgumentError(f"resident: expected True, False or a number of rows, found {resident!r}")
    parts = [_open_parts(folder) for folder in bank_paths(where)]
    layers: list[Layer] = []
    for folder, manifest, _, _ in parts:
        first_row = layers[-1].rows.stop if layers else 0
        layers.append(Layer(path=folder, manifest=manifest, first_row=first_row))
    check_layers(layers)
    table = _open_table(layers, resident, threads, cold_reader)
    folder, manifest, keys, index = parts[0]
    if len(parts) > 1:
        index = stacked = StackedIndex([index for _, _, _, index in parts])
        keys = StackedKeys([keys for _, _, keys, _ in parts], stacked)
        manifest = stacked_manifest(layers, index.fingerprint, table.dtype)
    return folder, manifest, keys, index, table, layers


def _open_table(layers: Sequence[Layer], resident: bool | int, threads: int, cold_reader: str) -> AnyTable:
    """The values of all layers: one compiled table where they are of one storage type, else one for each type's run."""
    left = layers[-1].rows.stop if resident is True else int(resident)
    tables: list[ValueTable] = []
    for run in _runs(layers):
        table = ValueTable.open(
            [layer.path / shard.file for layer in run for shard in layer.manifest.shards], left, threads, cold_reader
        )
        left = max(0, left - table.num_rows)
        shards = iter(table.shards())
        for layer in run:
            check_table(layer.path, layer.manifest, table, list(itertools.islice(shards, len(layer.manifest.shards))))
        tables.append(table)
    return tables[0] if len(tables) == 1 else MixedTable(tables)


def _runs(layers: Sequence[Layer]) -> list[list[Layer]]:
    """Layers side by side that one table can hold: of one storage type, and of one set of channel scales."""
    runs: list[list[Layer]] = []
    scales: list[bytes | None] = []
    for layer in layers:
        dtype = layer.manifest.dtype
        mine = channel_scales_of(layer) if len(layers) > 1 and DTYPES[dtype].scales == "channel" else None
        if runs and runs[-1][0].manifest.dtype == dtype and scales[-1] == mine:
            runs[-1].append(layer)
        else:
            runs.append([layer])
            scales.append(mine)
    return runs
