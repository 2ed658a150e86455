"""The rows of a bank in another storage type, within its rounding."""

import numpy as np
import pytest

from bank_cases import bank_maker
from memgraft.bank import Bank
from memgraft.bank.rewrite import requantise
from memgraft.errors import ArgumentError


@pytest.mark.parametrize(("dtype", "most"), [("fp8_e4m3", 0.04), ("int8", 0.02), ("bf16", 0.003), ("fp16", 0.0004)])
def test_requantising_costs_what_it_says(tmp_path, dtype, most):
    bank = bank_maker(tmp_path)(200, dtype="fp32")
    made = requantise(bank, tmp_path / dtype, dtype)
    made.verify()
    rows = np.arange(200)
    norms = np.linalg.norm(bank.floats(rows), axis=2).sum(0)
    error = np.linalg.norm(made.floats(rows) - bank.floats(rows), axis=2).sum(0) / norms
    np.testing.assert_allclose(made.manifest.donor["storage"]["error"], error, atol=1e-5)
    assert (error < most).all()
    assert (error > 0).all()
    assert made.manifest.donor["storage"]["from"] == "fp32"
    assert made.index.fingerprint == bank.index.fingerprint
    same = Bank.create(
        tmp_path / "same", keys=bank.keys, values=bank.floats(rows), taps=bank.taps, dtype=dtype, donor={}
    )
    np.testing.assert_array_equal(made.values(rows), same.values(rows))
    with pytest.raises(ArgumentError, match="stored so already"):
        requantise(made, tmp_path / "again", dtype)
