"""Collapsed rows are seen, whoever wrote the bank."""

import numpy as np
import pytest

from memgraft import Bank, KeySet
from memgraft.bank import BankWriter
from memgraft.bank.health import bank_health, collapsed, length_groups


@pytest.fixture
def made(tmp_path):
    """Rows of order 1 are nearly one large vector, rows of order 2 are not; twelve of each."""
    generator = np.random.default_rng(0)
    values = generator.standard_normal((24, 1, 32)).astype(np.float32)
    values[:12] = 7 * values[0] + 0.05 * values[:12]
    keys = KeySet.from_keys(
        [(i,) for i in range(12)] + [(i, i) for i in range(12)], counts=[30] * 12 + [10] * 12, vocab_size=16
    )
    rows = np.array([12 * (len(keys.key(row)) - 1) + keys.key(row)[0] for row in range(24)])

    def make(name: str, donor: dict) -> Bank:
        writer = BankWriter(
            tmp_path / name,
            keys=keys,
            taps=(1,),
            value_dim=32,
            dtype="fp32",
            donor={"name": "d", **donor},
            tokenizer={},
        )
        with writer:
            writer.write(0, values[rows])
            return writer.finish()

    return make


def test_an_old_bank_is_grouped_by_recipient_tokens(made):
    health = bank_health(made("old", {}))
    assert list(health) == ["1 recipient token", "2 recipient tokens"]
    alike, apart = health.values()
    assert (alike["rows"], alike["share_of_counts"]) == (12, 0.75)
    assert alike["mean_cosine"] > 0.99 > 0.3 > abs(apart["mean_cosine"])
    assert alike["median_norm"] > 5 * apart["median_norm"]
    assert alike["near_duplicate_pairs"] == 1.0
    (line,) = collapsed(health)
    assert "12 rows of 1 recipient token (75.0% of all counts)" in line


def test_groups_by_what_the_donor_read(made):
    lengths = [1] * 6 + [9] * 18
    groups = length_groups(lengths, [1] * 24)
    assert {name: group["rows"] for name, group in groups.items()} == {"1": 6, "8+": 18}
    health = bank_health(made("new", {"rows_by_donor_length": groups}))
    assert list(health) == ["1 donor token", "8+ donor tokens"]
    assert health["8+ donor tokens"]["sampled"] == 18
    assert collapsed(health) == [], "six rows are too few to judge"


def test_rows_of_another_bank_are_not_taken_for_this_ones(made):
    """A bank that was cut from another keeps its donor's facts; its rows are other ones."""
    groups = length_groups([1] * 30, [1] * 30)
    assert list(bank_health(made("cut", {"rows_by_donor_length": groups}))) == [
        "1 recipient token",
        "2 recipient tokens",
    ]


def test_large_groups_are_sampled_evenly():
    (group,) = length_groups(np.ones(100_000, int), np.ones(100_000)).values()
    sample = [int(row) for row in group["sample"].split()]
    assert len(sample) == 96
    assert sample[0] == 0
    assert sample[-1] == 99_999
