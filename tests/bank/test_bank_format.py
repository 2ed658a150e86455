"""docs/FORMAT.md, banks: an independent reader finds the same values, and banks of version 1 stay readable."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from bank_cases import make_keys
from format_reader import BankFolder
from memgraft.bank import Bank
from memgraft.bank.dtypes import DTYPES
from memgraft.keyset import KeySet

GOLDEN = Path(__file__).parents[1] / "data" / "format" / "v1"


def golden_values() -> np.ndarray:
    """Numbers of both signs, zeros, large and tiny ones, from integers alone."""
    rows, taps, channels = np.ogrid[:7, :2, :5]
    values = ((rows * 7 + taps * 3 + channels * 5) % 31 - 15) / np.float32(8)
    values[2] = 0
    values[3] *= 2.0**10
    values[4, :, ::2] *= 2.0**-12
    return values.astype(np.float32)


def golden_bank(path: Path, dtype: str) -> Bank:
    """Seven rows in two shards."""
    keys = KeySet.from_keys(
        list(itertools.chain([(5,), (6,), (7,)], itertools.product((5, 6), repeat=2))),
        counts=[9, 8, 7, 5, 4, 3, 2],
        vocab_size=9,
    )
    return Bank.create(
        path,
        keys=keys,
        values=golden_values(),
        taps=(8, 24),
        dtype=dtype,
        donor={"name": "golden"},
        tokenizer={"fingerprint": "e" * 64},
        shard_bytes=2 * 5 * DTYPES[dtype].size * 4,
    )


def test_the_independent_reader_agrees(tmp_path):
    values = np.random.default_rng(0).normal(size=(40, 3, 6)).astype(np.float32)
    for dtype in DTYPES:
        options = {"keys": make_keys(40), "values": values, "taps": (1, 2, 3), "shard_bytes": 1000}
        bank = Bank.create(tmp_path / dtype, dtype=dtype, **options)
        read = BankFolder(bank.path)
        np.testing.assert_array_equal(read.floats, bank.floats(np.arange(40)))
        np.testing.assert_allclose(read.floats, values, rtol=0.07, atol=0.02)
        assert read.facts["fingerprint"] == bank.fingerprint


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_values_still_give_the_same_bytes(tmp_path, dtype):
    old, new = GOLDEN / f"bank-{dtype}", golden_bank(tmp_path / "bank", dtype).path
    names = sorted(path.name for path in old.iterdir())
    assert names == sorted(path.name for path in new.iterdir())
    for name in names:
        if name.endswith(".safetensors"):
            assert (old / name).read_bytes() == (new / name).read_bytes()
    facts = [json.loads((folder / "bank.json").read_text()) for folder in (old, new)]
    # The golden banks are from before the value space was recorded, which the fingerprint covers.
    assert facts[1].pop("value_space")["fingerprint"] == Bank.open(old).space == Bank.open(new).space
    for one in facts:
        del one["tool"], one["fingerprint"]
    assert facts[0] == facts[1]


@pytest.mark.parametrize("dtype", DTYPES)
def test_golden_banks_open_verify_and_answer(dtype):
    bank = Bank.open(GOLDEN / f"bank-{dtype}")
    bank.verify()
    assert (bank.dtype, bank.num_rows, bank.taps, bank.value_dim) == (dtype, 7, (8, 24), 5)
    assert [entry.num_rows for entry in bank.manifest.shards] == [4, 3]
    read = BankFolder(bank.path)
    np.testing.assert_array_equal(read.floats, bank.floats(np.arange(7)))
    np.testing.assert_allclose(read.floats, golden_values(), rtol=0.07, atol=8.1 if dtype == "int8" else 0)
    if dtype in ("bf16", "fp16", "fp32"):
        np.testing.assert_array_equal(read.floats, golden_values())
    staged = bank.stage([5, 6, 8, 5, 5])
    assert np.append(staged.rows, -1)[staged.inverse].tolist() == [0, 4, -1, 0, 3]
    assert list(bank.keys) == read.keys.keys


if __name__ == "__main__":  # writes the golden banks of a new version; never again for this one
    for name in DTYPES:
        golden_bank(GOLDEN / f"bank-{name}", name)
