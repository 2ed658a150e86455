"""What a plan promises is what mining, indexing and looking up then give."""

import numpy as np
import pytest

from memgraft import CorpusWriter, NgramIndex, coverage, mine
from memgraft.corpus import Corpus
from memgraft.errors import ArgumentError
from memgraft.planning import plan_budgets


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    generator = np.random.default_rng(5)
    with CorpusWriter(tmp_path_factory.mktemp("plan") / "corpus", vocab_size=50) as writer:
        for size in generator.integers(0, 80, 200):
            writer.add(generator.zipf(1.4, size).clip(max=50) - 1)
        return Corpus.open(writer.finish())


@pytest.mark.parametrize("orders", [(2, 3, 4), (1, 3)])
def test_every_point_is_what_mining_that_budget_gives(corpus, orders):
    budgets = (700, 10, 61, 4000)
    keys, points = plan_budgets(corpus, budgets, orders=orders, held_out=0.2, seed=3)
    train, held = corpus.split(held_out=0.2, seed=3)
    assert [point.budget for point in points] == sorted(budgets)
    for point in points:
        mined = mine(train, orders, point.budget)
        index = NgramIndex.build(mined)
        facts = coverage(index, held)
        assert (point.num_keys, point.coverage, point.hits) == (len(mined), facts["coverage"], facts["hits"])
        assert (point.index_bytes, point.positions) == (index.stats()["bytes"], held.num_tokens)
        for order, count in point.min_count.items():
            counts = [mined.count(row) for row in range(len(mined)) if len(mined.key(row)) == order]
            assert count == min(counts)
    assert keys.fingerprint == mine(train, orders, 4000).fingerprint
    assert len({point.coverage for point in points}) > 1


def test_budgets_must_be_there_and_large_enough(corpus):
    with pytest.raises(ArgumentError, match="at least one number of keys"):
        plan_budgets(corpus, [])
    with pytest.raises(ArgumentError, match="at least one key for each of 3 orders, got 2"):
        plan_budgets(corpus, [2, 100])


def test_policies_are_weighed_as_mining_by_them_would(corpus):
    policies = ("gain", "documents", "shares", "count")
    keys, points = plan_budgets(corpus, (60, 9), policies=policies, held_out=0.2, seed=3)
    train, held = corpus.split(held_out=0.2, seed=3)
    assert [(point.policy, point.budget) for point in points] == [(name, size) for name in policies for size in (9, 60)]
    for point in points:
        mined = mine(train, (2, 3, 4), point.budget, policy=point.policy)
        facts = coverage(NgramIndex.build(mined), held)
        assert (point.num_keys, point.coverage, point.hits) == (len(mined), facts["coverage"], facts["hits"])
        assert point.rows_per_token == facts["unique_rows_per_token"]
    assert set(keys) == set(mine(train, (2, 3, 4), 60, policy="gain"))
    assert len({point.coverage for point in points}) > 4
    with pytest.raises(ArgumentError, match=r"policies: expected some of shares, count, documents, gain, got best"):
        plan_budgets(corpus, (9,), policies=("best",))
