"""Counts of others become the key set that mining gives; the recipes of docs/MINING.md run here."""

import collections
import re
import tracemalloc
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import memgraft
from memgraft.errors import ArgumentError, KeySetError, TokenError
from memgraft.mining import Columns, import_counts

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
PAGE = Path(__file__).parents[2] / "docs" / "MINING.md"

keys_strategy = st.lists(
    st.tuples(st.lists(st.integers(0, 4), min_size=1, max_size=4), st.integers(1, 1 << 40), st.integers(0, 9)),
    min_size=1,
)


@settings(deadline=None, max_examples=30)
@given(rows=keys_strategy, budget=st.none() | st.integers(4, 20), kind=st.sampled_from(["list", "large", "apart"]))
def test_equal_keys_are_summed_and_selected_as_by_mining(tmp_path_factory, rows, budget, kind):
    folder = tmp_path_factory.mktemp("t")
    counts, documents = collections.Counter(), collections.Counter()
    for key, count, frequency in rows:
        counts[tuple(key)] += count
        documents[tuple(key)] += frequency
    columns, where = {"count": [row[1] for row in rows], "documents": [row[2] for row in rows]}, None
    if kind == "apart":
        where = Columns(tokens=("a", "b", "c", "d"))
        padded = [[*row[0], None, None, None, None] for row in rows]
        columns |= {name: pa.array([row[i] for row in padded], pa.int32()) for i, name in enumerate("abcd")}
    else:
        columns["tokens"] = pa.array(
            [row[0] for row in rows], (pa.list_ if kind == "list" else pa.large_list)(pa.int64())
        )
    half = len(rows) // 2
    table = pa.table(columns)
    pq.write_table(table.slice(0, half), folder / "0.parquet", row_group_size=3)
    pq.write_table(table.slice(half), folder / "1.parquet", row_group_size=2)
    # So little memory that every few keys have a file of their own.
    keys = import_counts(folder, vocab_size=5, budget=budget, columns=where, memory=2000, temporary=folder)
    want = []
    orders = sorted({len(key) for key in counts})
    for place, order in enumerate(orders):
        share = None if budget is None else budget // len(orders) + (place < budget % len(orders))
        ranked = sorted((key for key in counts if len(key) == order), key=lambda key: (-counts[key], key))
        want += ranked[:share]
    want.sort(key=lambda key: (-counts[key], key))
    assert list(keys) == want
    assert [keys.count(row) for row in range(len(keys))] == [counts[key] for key in want]
    assert [keys.documents(row) for row in range(len(keys))] == [documents[key] for key in want]


def test_fixed_size_lists_and_min_count(tmp_path):
    lists = pa.array([[1, 2], [1, 2], [3, 4]], pa.list_(pa.uint16(), 2))
    pq.write_table(pa.table({"gram": lists, "n": [1, 2, 1]}), tmp_path / "t.parquet")
    where = Columns(tokens="gram", count="n")
    assert list(import_counts(tmp_path / "t.parquet", vocab_size=5, columns=where, min_count=2)) == [(1, 2)]


@pytest.mark.parametrize(
    ("table", "options", "error", "message"),
    [
        ({"tokens": [[1], [7]], "count": [1, 2]}, {"vocab_size": 7}, TokenError, "token 7 lies outside"),
        ({"tokens": [[1], [-1]], "count": [1, 2]}, {"vocab_size": 7}, TokenError, "below 0"),
        ({"tokens": [[1], [2]], "count": [1, 2]}, {"vocab_size": 7, "reserved": [2]}, KeySetError, "reserved token 2"),
        ({"tokens": [[1], []], "count": [1, 2]}, {"vocab_size": 7}, KeySetError, "1 to 16 tokens"),
        ({"tokens": [[1], None], "count": [1, 2]}, {"vocab_size": 7}, KeySetError, "without nulls"),
        ({"tokens": [[1]], "count": [None]}, {"vocab_size": 7}, KeySetError, "whole numbers without nulls"),
        ({"tokens": [[1]], "count": [-3]}, {"vocab_size": 7}, KeySetError, "0 and more"),
        ({"tokens": ["a"], "count": [3]}, {"vocab_size": 7}, KeySetError, "lists of token ids"),
        ({"tokens": [[1], [1]], "count": [1 << 62, 1]}, {"vocab_size": 7}, KeySetError, "sums of equal keys below"),
        ({"tokens": [[1]], "count": [Decimal("2.5")]}, {"vocab_size": 7}, KeySetError, "whole numbers below"),
        ({"tokens": [[1]], "count": [Decimal(1 << 64)]}, {"vocab_size": 7}, KeySetError, "whole numbers below"),
        ({"tokens": [[1]], "n": [3]}, {"vocab_size": 7}, KeySetError, "expected a column 'count', found tokens, n"),
        ({"tokens": [[1]], "count": [3]}, {}, ArgumentError, "vocab_size="),
    ],
)
def test_refusals(tmp_path, table, options, error, message):
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    with pytest.raises(error, match=message):
        import_counts(tmp_path / "t.parquet", **options)


def test_one_key_in_every_row_and_many_keys_take_bounded_memory(tmp_path):
    rng = np.random.default_rng(0)
    ids = np.concatenate([np.zeros(150_000, np.int64), rng.integers(0, 40_000, 50_000)])
    counts = rng.integers(1, 1 << 33, len(ids))
    tokens = pa.FixedSizeListArray.from_arrays(pa.array(np.stack([ids // 300, ids % 300], 1).ravel()), 2)
    pq.write_table(pa.table({"tokens": tokens, "count": counts}), tmp_path / "t.parquet", row_group_size=10_000)
    want = collections.Counter()
    for key, count in zip(ids.tolist(), counts.tolist(), strict=True):
        want[divmod(key, 300)] += count
    tracemalloc.start()
    try:
        keys = import_counts(tmp_path / "t.parquet", vocab_size=300, budget=500, memory="2MB", temporary=tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    first = sorted(want, key=lambda key: (-want[key], key))[:500]
    assert [(key, keys.count(row)) for row, key in enumerate(keys)] == [(key, want[key]) for key in first]
    assert want[0, 0] > 1 << 32
    assert peak < 6e6  # the table's rows would take 16 MB, sorting them several times that
    assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"]


@pytest.mark.parametrize("engine", ["duckdb", "polars"])
def test_recipes_give_what_mining_gives(tmp_path, monkeypatch, engine):
    pytest.importorskip(engine)
    rng = np.random.default_rng(0)
    documents = [(rng.zipf(1.5, rng.integers(1, 60)) % 30).tolist() for _ in range(80)]
    table = pa.table({"document": range(80), "tokens": pa.array(documents, pa.list_(pa.int32()))})
    pq.write_table(table, tmp_path / "documents.parquet")
    monkeypatch.chdir(tmp_path)
    recipe = re.search(rf"```python\n(import {engine}\n.*?)```", PAGE.read_text(), re.DOTALL)
    names = {}
    exec(recipe[1], names)
    with memgraft.CorpusWriter(tmp_path / "corpus", vocab_size=30) as writer:
        for document in documents:
            writer.add(document)
        corpus = memgraft.Corpus.open(writer.finish())
    want = memgraft.mine(corpus, (2, 3), 200, min_count=2)
    assert names["keys"].fingerprint == want.fingerprint
