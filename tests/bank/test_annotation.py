import json
import pickle
from dataclasses import dataclass

import numpy as np
import pytest

from memgraft.bank.annotation import Annotation, annotate, annotate_dataset
from memgraft.corpus import Corpus, CorpusWriter
from memgraft.errors import ArgumentError, FingerprintError, FormatError, StorageError


@dataclass
class Tokens:
    """A corpus in memory."""

    ids: np.ndarray
    starts: np.ndarray
    fingerprint: str = "c" * 64

    @property
    def num_tokens(self):
        return len(self.ids)

    @property
    def document_starts(self):
        return self.starts.astype(np.uint64)

    def tokens(self, start=0, stop=None):
        return self.ids[start:stop].astype(np.uint32)


def make_corpus(num_tokens=500, seed=0):
    generator = np.random.default_rng(seed)
    edges = np.unique(np.concatenate([[0, num_tokens], generator.integers(0, num_tokens, 20)]))
    return Tokens(generator.integers(0, 50, num_tokens), edges)


def naive(bank, corpus, start, stop):
    """Rows and orders of a window looked up document by document."""
    parts = []
    for first, last in zip(corpus.starts[:-1], corpus.starts[1:], strict=True):
        first, last = max(first, start), min(last, stop)
        if first < last:
            parts.append(bank.index.lookup(corpus.ids[first:last]))
    rows, orders = zip(*parts, strict=True) if parts else ((np.empty(0),), (np.empty(0),))
    return np.concatenate(rows), np.concatenate(orders)


@pytest.mark.parametrize("chunk", [1 << 24, 7])
def test_rows_of_the_whole_and_of_any_window(make_bank, tmp_path, chunk):
    bank, corpus = make_bank(2000), make_corpus()
    seen = []
    found = annotate(bank, corpus, tmp_path / "rows", progress=lambda *call: seen.append(call), block_tokens=chunk)
    assert seen[-1] == ("look up", 500, 500)
    rows, orders = naive(bank, corpus, 0, 500)
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_array_equal(found.orders, orders)
    assert found.facts["num_hits"] == (rows >= 0).sum()
    assert not (tmp_path / "rows.partial").exists()
    for start in range(0, 500, 23):
        for length in (0, 1, 2, 40):
            stop = min(500, start + length)
            example = found.example(start, stop)
            rows, orders = naive(bank, corpus, start, stop)
            np.testing.assert_array_equal(example["memgraft_rows"], rows)
            np.testing.assert_array_equal(example["memgraft_orders"], orders)
            np.testing.assert_array_equal(example["input_ids"], corpus.ids[start:stop])
    with pytest.raises(ArgumentError, match=r"within 0\.\.500"):
        found.example(490, 501)
    assert repr(found) == f"Annotation({tmp_path / 'rows'}, {found.facts['num_hits']} hits in 500 tokens)"


def test_an_annotation_pickles_by_path(make_bank, tmp_path):
    with CorpusWriter(tmp_path / "corpus", vocab_size=50) as writer:
        writer.add(make_corpus(9000).ids)
    found = annotate(make_bank(2000), Corpus.open(tmp_path / "corpus"), tmp_path / "rows")
    pickled = pickle.dumps(found)
    assert len(pickled) < 2000
    again, expected = pickle.loads(pickled).example(100, 180), found.example(100, 180)
    assert again.keys() == expected.keys()
    assert all(np.array_equal(again[name], expected[name]) for name in expected)


def test_a_killed_run_goes_on_where_it_synced(make_bank, tmp_path):
    bank, corpus = make_bank(2000), make_corpus()

    class Killed(Exception):
        pass

    def kill(phase, done, total):
        if done == 300:
            raise Killed

    with pytest.raises(Killed):
        annotate(bank, corpus, tmp_path / "rows", progress=kill, block_tokens=100)
    assert not (tmp_path / "rows").exists()
    with pytest.raises(FingerprintError, match="another corpus"):
        annotate(bank, make_corpus(seed=1).__class__(corpus.ids, corpus.starts, "d" * 64), tmp_path / "rows")
    seen = []
    found = annotate(
        bank, corpus, tmp_path / "rows", progress=lambda phase, done, total: seen.append(done), block_tokens=100
    )
    assert seen == [400, 500]
    np.testing.assert_array_equal(found.rows, naive(bank, corpus, 0, 500)[0])
    assert found.facts["num_hits"] == (found.rows >= 0).sum()


def test_what_does_not_belong_together_is_refused(make_bank, tmp_path):
    bank, corpus = make_bank(2000), make_corpus()
    path = tmp_path / "rows"
    with pytest.raises(StorageError, match="run memgraft annotate"):
        Annotation.open(path, bank, corpus)
    annotate(bank, corpus, path)
    with pytest.raises(ArgumentError, match="exists"):
        annotate(bank, corpus, path)
    with pytest.raises(FingerprintError, match="expected bank"):
        Annotation.open(path, make_bank(100), corpus)
    with pytest.raises(FingerprintError, match="expected corpus"):
        Annotation.open(path, bank, Tokens(corpus.ids, corpus.starts, "d" * 64))
    good = (path / "rows.npy").read_bytes()
    (path / "rows.npy").write_bytes(good[:-4])
    with pytest.raises(FormatError, match=r"rows\.npy"):
        Annotation.open(path, bank, corpus)
    np.save(path / "rows.npy", np.zeros(499, np.int32))
    with pytest.raises(FormatError, match=r"rows\.npy: expected int32 \(500,\)"):
        Annotation.open(path, bank, corpus)
    (path / "rows.npy").unlink()
    with pytest.raises(StorageError, match=r"rows\.npy: not found"):
        Annotation.open(path, bank, corpus)
    facts = json.loads((path / "annotation.json").read_text())
    (path / "annotation.json").write_text(json.dumps({**facts, "format_version": "9"}))
    with pytest.raises(FormatError, match="version"):
        Annotation.open(path, bank, corpus)
    (path / "annotation.json").write_text("{")
    with pytest.raises(FormatError, match="not JSON"):
        Annotation.open(path, bank, corpus)


@pytest.mark.filterwarnings("ignore")
def test_datasets_get_columns(make_bank):
    datasets = pytest.importorskip("datasets")
    bank = make_bank(2000)
    generator = np.random.default_rng(0)
    ids = [generator.integers(0, 50, length).tolist() for length in (9, 0, 1, 30)]
    plain = datasets.Dataset.from_dict({"input_ids": ids})
    found = annotate_dataset(plain, bank)
    assert found.column_names == ["input_ids", "memgraft_rows", "memgraft_orders"]
    for example in found:
        rows, orders = bank.index.lookup(np.array(example["input_ids"], np.int64))
        assert example["memgraft_rows"] == rows.tolist()
        assert example["memgraft_orders"] == orders.tolist()
    packed = datasets.Dataset.from_dict(
        {"input_ids": ids, "position_ids": [[place % 4 for place in range(len(part))] for part in ids]}
    )
    for example in annotate_dataset(packed, bank):
        parts = [np.array(example["input_ids"][at : at + 4]) for at in range(0, len(example["input_ids"]), 4)]
        rows = np.concatenate([bank.index.lookup(part)[0] for part in parts]) if parts else np.empty(0)
        assert example["memgraft_rows"] == rows.tolist()
    padded = {"input_ids": [[-100, *part] for part in ids], "attention_mask": [[0] + [1] * len(part) for part in ids]}
    for example in annotate_dataset(datasets.Dataset.from_dict(padded), bank):
        rows, _ = bank.index.lookup(np.array(example["input_ids"][1:], np.int64))
        assert example["memgraft_rows"] == [-1, *rows.tolist()]
    with pytest.raises(ArgumentError, match="packed_lens"):
        annotate_dataset(datasets.Dataset.from_dict({"input_ids": ids, "packed_lens": [[1]] * 4}), bank)
    with pytest.raises(ArgumentError, match="expected one of input_ids"):
        annotate_dataset(plain, bank, column="tokens")


def test_bank_and_dataset_in_the_other_order_are_refused(make_bank):
    datasets = pytest.importorskip("datasets")
    bank, dataset = make_bank(200), datasets.Dataset.from_dict({"input_ids": [[1, 2]]})
    with pytest.raises(ArgumentError, match="got a Bank; annotate_dataset takes the dataset, then the bank"):
        annotate_dataset(bank, dataset)
    with pytest.raises(ArgumentError, match="bank: expected it opened, got the path 'bank/'"):
        annotate_dataset(dataset, "bank/")


def test_streams_and_datasets_of_several_splits(make_bank):
    datasets = pytest.importorskip("datasets")
    import pyarrow

    bank = make_bank()
    table = pyarrow.table({"input_ids": [[1, 2, 3], [4, 5]]})
    whole = annotate_dataset(datasets.Dataset(table, fingerprint="some"), bank)
    expected = [row["memgraft_rows"] for row in whole]
    splits = datasets.DatasetDict({name: datasets.Dataset(table, fingerprint=name) for name in ("train", "test")})
    for split in annotate_dataset(splits, bank).values():
        assert [row["memgraft_rows"] for row in split] == expected
    stream = datasets.Dataset(table, fingerprint="some").to_iterable_dataset()
    assert [list(row["memgraft_rows"]) for row in annotate_dataset(stream, bank)] == expected
    with pytest.raises(ArgumentError, match="num_proc: expected none for a stream"):
        annotate_dataset(stream, bank, num_proc=2)
    unknown = datasets.IterableDataset.from_generator(lambda: iter([{"tokens": [1, 2]}]))
    with pytest.raises(ArgumentError, match="column 'input_ids': expected one of tokens"):
        list(annotate_dataset(unknown, bank))
    with pytest.raises(ArgumentError, match="expected one of input_ids"):
        annotate_dataset(splits, bank, column="tokens")
