import numpy as np
import pytest

from bank_cases import in_memory_only
from memgraft.bank import Bank
from memgraft.bank.measure import measure_datapath
from memgraft.errors import ArgumentError


@pytest.mark.parametrize("reader", ["pread", "io_uring"])
def test_figures_are_what_they_say(make_bank, monkeypatch, reader):
    made = make_bank(2000, value_dim=512)
    if in_memory_only(made.path):
        pytest.skip("temporary files lie in memory here: nothing is cold")
    bank = Bank.open(made.path, cold_reader=reader)
    staged = []
    stage = Bank.stage

    def watched(self, **options):
        staged.append(stage(self, **options))
        return staged[-1]

    monkeypatch.setattr(Bank, "stage", watched)
    facts = measure_datapath(bank, batch=3000, hits=0.5, tokens_per_second=1e6, threads=1, evict=True, seconds=0.01)
    first, rest = staged[0].facts, [one.facts for one in staged[1:5]]
    assert facts["first_batch_cold_rows"] == first.num_cold_rows > 0
    assert facts["cold_rows_per_second"] == round(first.num_cold_rows / first.seconds)
    assert facts["hit_share"] == sum(one.num_hits for one in rest) / 12_000
    num_hits = sum(one.num_hits for one in rest)
    assert facts["unique_share"] == pytest.approx(sum(one.num_unique for one in rest) / num_hits)
    needed = 1e6 * facts["hit_share"] * facts["unique_share"]
    assert facts["needed_gigabytes_per_second"] == pytest.approx(needed * 2048 / 1e9)
    for kind in ("warm", "cold"):
        assert facts[f"{kind}_margin"] == pytest.approx(facts[f"{kind}_rows_per_second"] / needed, rel=0.01)
    assert facts["cold_reader"] == bank.cold_reader == first.cold_reader
    counts = bank.keys.arrays().counts
    drawn = np.bincount(np.concatenate([one.rows[one.inverse[one.inverse >= 0]] for one in staged[:5]]), minlength=2000)
    assert np.corrcoef(drawn, counts)[0, 1] > 0.2, "rows are drawn as often as their keys were counted"


def test_a_warm_bank_has_no_cold_figure(make_bank):
    bank = make_bank(500)
    bank.warm()
    facts = measure_datapath(bank, batch=1000, tokens_per_second=1e15, threads=1, seconds=0.01)
    assert facts["cold_rows_per_second"] is None
    assert "cold_margin" not in facts
    assert "TOO SLOWLY" in facts["verdict"]
    assert "--evict" in facts["verdict"]
    for bad in ({"batch": 0}, {"batch": 10, "hits": 1.5}):
        with pytest.raises(ArgumentError, match="expected at least 1 position"):
            measure_datapath(bank, **bad)
