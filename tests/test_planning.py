"""What a plan promises is what mining, indexing and looking up then give."""

import numpy as np
import pytest

from memgraft import CorpusWriter, NgramIndex, coverage, mine
from memgraft.corpus import Corpus
from memgraft.errors import ArgumentError
from memgraft.planning import hot_rows, plan_budgets


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
        assert (point.index_bytes, point.positions) == (index.stats()["file_bytes"], held.num_tokens)
        for order, count in point.min_count.items():
            counts = [mined.count(row) for row in range(len(mined)) if len(mined.key(row)) == order]
            assert count == min(counts)
    assert keys.fingerprint == mine(train, orders, 4000).fingerprint
    assert len({point.coverage for point in points}) > 1


@pytest.mark.parametrize("vocab_size", [50, 131_000, 262_144])
def test_the_index_weighs_what_its_file_will(corpus, tmp_path, vocab_size):
    """The table has an entry for each token, and starts on a huge page in the file."""
    keys, (point,) = plan_budgets(corpus, (300,), held_out=0.2, vocab_size=vocab_size)
    NgramIndex.build(keys).save(tmp_path / "index.mgi")
    assert point.index_bytes == (tmp_path / "index.mgi").stat().st_size


def test_budgets_must_be_there_and_large_enough(corpus):
    with pytest.raises(ArgumentError, match="at least one number of keys"):
        plan_budgets(corpus, [])
    with pytest.raises(ArgumentError, match="at least one key for each of 3 orders, got 2"):
        plan_budgets(corpus, [2, 100])
    with pytest.raises(ArgumentError, match="at least one key for each of 3 orders, got 2"):
        plan_budgets(corpus, [2, 100], policies=("count", "shares"))
    with pytest.raises(ArgumentError, match="budget: expected 1 or more, got 0"):
        plan_budgets(corpus, [0, 100], policies=("count",))


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


def test_policies_without_shares_take_budgets_below_the_number_of_orders(corpus):
    _, points = plan_budgets(corpus, (1, 2), policies=("count", "documents", "gain"), held_out=0.2, seed=3)
    assert [(point.budget, point.num_keys) for point in points] == [(1, 1), (2, 2)] * 3


@pytest.mark.parametrize("batch", [2, 37, 100_000])
def test_hot_rows_are_the_first_ones_of_each_batch(corpus, batch):
    keys = mine(corpus, (2, 3), 90)
    index, row_of = NgramIndex.build(keys), {keys.key(row): row for row in range(len(keys))}
    points = hot_rows(index, corpus, (90, 0, 7, 10_000), batch_tokens=batch)
    size = min(batch, corpus.num_tokens)
    batches = corpus.num_tokens // size
    starts = {int(start) for start in corpus.document_starts}
    seen = []
    for first in np.linspace(0, corpus.num_tokens - size, batches).astype(int):
        rows, begun = set(), first
        tokens = corpus.tokens(first, first + size).tolist()
        for position in range(first, first + size):
            begun = position if position in starts else begun
            for order in (3, 2):
                key = tuple(tokens[position - first + 1 - order : position - first + 1])
                if position + 1 - order >= begun and key in row_of:
                    rows.add(row_of[key])
                    break
        seen.append(rows)
    assert [point.num_rows for point in points] == [0, 7, 90, 90]
    for point, count in zip(points, (0, 7, 90, 10_000), strict=True):
        assert point.batch_tokens == size
        assert point.rows_per_batch == pytest.approx(sum(map(len, seen)) / batches)
        assert point.hot_per_batch == pytest.approx(sum(row < count for rows in seen for row in rows) / batches)
    assert points[-1].hot_per_batch == points[-1].rows_per_batch > points[1].hot_per_batch > 0
    # A sample takes fewer batches, and one at least.
    assert hot_rows(index, corpus, (7,), batch_tokens=batch, sample=1)[0].batch_tokens == size


def test_hot_rows_refuse_what_means_nothing(corpus):
    index = NgramIndex.build(mine(corpus, (2, 3), 90))
    with pytest.raises(ArgumentError, match="hot_rows -1: expected rows"):
        hot_rows(index, corpus, (-1, 4))
    with pytest.raises(ArgumentError, match="batch_tokens 0: expected at least 1"):
        hot_rows(index, corpus, (4,), batch_tokens=0)
