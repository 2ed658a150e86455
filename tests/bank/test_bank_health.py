"""Collapsed rows are seen, whoever wrote the bank."""

import re

import numpy as np
import pytest

from memgraft import Bank, KeySet
from memgraft.bank import BankWriter
from memgraft.bank.health import bank_health, collapsed, health_warnings, length_groups, whole_health
from memgraft.report.plots import health_plot


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


def healthy(num_rows=120, width=48):
    return np.random.default_rng(3).standard_normal((num_rows, 1, width)).astype(np.float32)


def twins(values):
    values[::2] = values[1::2] * 2
    return "100.0% of the sampled rows have a twin"


def few_directions(values):
    direction = np.ones(values.shape[2], np.float32)
    values[:] = 3 * direction + values[:, :, :1] * np.linspace(-1, 1, values.shape[2], dtype=np.float32)
    values += 1e-4 * healthy()
    return r"the rows span 1\.\d directions of 48 possible"


def outliers(values):
    values[:, :, 5] *= 400
    values[:, :, 9] *= 300
    return r"2 of 48 channels hold 100.0% of the rows' square norm"


def zeros(values):
    values[7] = 0
    return "0.8% of the sampled rows are zero"


def norms(values):
    values[:4] *= 500
    return r"norms reach from .* \(median\) to .* \(99 %\): a few rows are of another kind"


@pytest.mark.parametrize("fault", [twins, few_directions, outliers, zeros, norms])
def test_each_planted_fault_is_named(make_bank, fault):
    values = healthy()
    expected = fault(values)
    bank = make_bank(len(values), taps=1, value_dim=48, dtype="fp32", values=values)
    lines = health_warnings(bank_health(bank), whole_health(bank))
    assert any(re.search(expected, line) for line in lines), lines
    assert all(";" in line for line in lines), "each says what to do"


def test_a_healthy_bank_is_not_warned_of(make_bank):
    values = healthy()
    bank = make_bank(len(values), taps=1, value_dim=48, dtype="bf16", values=values)
    groups, whole = bank_health(bank), whole_health(bank)
    assert health_warnings(groups, whole) == []
    assert whole["rows"] == whole["sampled"] == 120
    # The plain definition, on the same rows.
    unit = bank.floats(np.arange(120, dtype=np.int32))[:, 0]
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    spectrum = np.linalg.eigvalsh(np.cov(unit.T, bias=True)).clip(0)
    shares = spectrum[spectrum > 1e-9] / spectrum.sum()
    assert whole["effective_rank"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), abs=0.1)
    assert sum(group["share_of_counts"] for group in groups.values()) == pytest.approx(1, abs=1e-3)


def test_the_worst_tap_counts(make_bank):
    values = np.concatenate([healthy(), healthy()], axis=1)
    values[::2, 1] = values[1::2, 1]
    bank = make_bank(len(values), taps=2, value_dim=48, dtype="fp32", values=values)
    assert whole_health(bank)["rows_with_twin"] == 1.0


def test_the_picture_has_every_group(made):
    drawn = health_plot(bank_health(made("old", {})))
    assert drawn.count("recipient token") >= 2
    assert "share of counted positions" in drawn
