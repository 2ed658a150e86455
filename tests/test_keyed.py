"""Key sets, indexes, banks and corpora as Python's own containers: ``[]``, ``with``, pandas."""

import numpy as np
import pytest
import torch

import memgraft
from memgraft.corpus import CorpusWriter
from memgraft.errors import ArgumentError, RowError

KEYS = [(1, 2), (3, 4, 5), (6, 7)]


@pytest.fixture
def keys():
    return memgraft.KeySet.from_keys(KEYS, [9, 5, 3], [4, 2, 1], vocab_size=9)


@pytest.fixture
def bank(keys, tmp_path):
    values = np.arange(24, dtype=np.float32).reshape(3, 2, 4)
    return memgraft.Bank.create(tmp_path / "bank", keys=keys, values=values, taps=(1, 2), dtype="fp32")


@pytest.mark.parametrize("make", [lambda keys: keys, memgraft.NgramIndex.build])
def test_rows_by_number_and_slice(keys, make):
    rows = make(keys)
    assert [rows[0], rows[-1], rows[np.int64(1)]] == [KEYS[0], KEYS[2], KEYS[1]]
    assert rows[1:] == KEYS[1:]
    assert rows[::-1] == KEYS[::-1]
    assert (3, 4, 5) in rows
    assert (3, 4) not in rows
    for key in ([3, 4, 5], np.array([3, 4, 5]), torch.tensor([3, 4, 5]), (np.uint16(3), 4, 5)):
        assert key in rows
    for no_key in ("345", ["3", "4"], [3.0, 4.0, 5.0], 3, None, [], [[3, 4, 5]], (3, -4, 5), (3, 4, 9)):
        assert no_key not in rows
    for wrong in (3, -4):
        with pytest.raises(RowError, match="row: expected -3 to 2"):
            rows[wrong]
    with pytest.raises(ArgumentError, match="expected a whole number or a slice, got str"):
        rows["a"]


def test_values_of_a_bank(bank):
    whole = bank.floats(np.arange(3))
    assert bank[1].shape == (2, 4)
    assert np.array_equal(bank[1], whole[1])
    assert np.array_equal(bank[-1], whole[2])
    assert np.array_equal(bank[:2], whole[:2])
    assert np.array_equal(bank[[2, 0]], whole[[2, 0]])
    with pytest.raises(ArgumentError, match=r"several in \[\]; give a list"):
        bank[1, 0]
    # An index ends an iteration.
    assert np.array_equal(np.stack(list(bank)), whole)
    with pytest.raises(IndexError):
        bank[3]


def test_a_miss_has_no_value(bank):
    rows, _ = bank.lookup([8, 1, 2])
    assert rows.tolist() == [-1, -1, 0]
    for read in (bank.__getitem__, bank.floats, bank.values):
        with pytest.raises(RowError, match=r"-1 is a miss, which has no value; leave misses out: rows\[rows >= 0\]"):
            read(rows)
    assert np.array_equal(bank[rows[rows >= 0]], bank[[0]])


def test_find_takes_whole_numbers_alone(keys):
    index = memgraft.NgramIndex.build(keys)
    assert index.find(np.array([6, 7])) == 2
    for wrong in ([6.9, 7.0], "67", 6):
        with pytest.raises(ArgumentError, match="tokens: expected the ids of a key, got "):
            index.find(wrong)


@pytest.mark.parametrize(
    ("tokens", "found"),
    [
        ([[1, 2], [3]], r"sequences of different lengths; .* segments=.* cu_seqlens="),
        ("the king", "got text; encode it"),
        (["the", "king"], "got text; encode it"),
        ({"input_ids": [1, 2]}, r'got a dict; give its \["input_ids"\]'),
        ((token for token in (1, 2)), "ids, got a generator"),
        ([1.0, 2.0], "ids, got float64"),
    ],
)
def test_what_a_lookup_takes_no_ids_from_says_so(bank, tokens, found):
    for lookup in (bank.lookup, bank.index.lookup):
        with pytest.raises(ArgumentError, match=f"tokens: expected .*{found}"):
            lookup(tokens)


def test_with_lets_go_of_the_files(bank, keys, tmp_path):
    keys.save(tmp_path / "keys.mgk")
    memgraft.NgramIndex.build(keys).save(tmp_path / "index.mgi")
    opened = [
        memgraft.KeySet.open(tmp_path / "keys.mgk"),
        memgraft.NgramIndex.open(tmp_path / "index.mgi"),
        memgraft.Bank.open(bank.path),
    ]
    for one in opened:
        with one as same:
            assert same is one
            assert len(one) == 3
        with pytest.raises(ArgumentError, match=r"is closed; open it again"):
            one[0]
    with pytest.raises(ArgumentError, match=r"bank is closed|is closed"):
        opened[2].lookup([1, 2])
    with pytest.raises(ArgumentError, match="is closed"):
        len(opened[0])


def test_a_stack_closes_its_banks(bank, keys, tmp_path):
    other = memgraft.KeySet.from_keys([(8, 8)], vocab_size=9)
    over = memgraft.Bank.create(
        tmp_path / "over", keys=other, values=np.ones((1, 2, 4), np.float32), taps=(1, 2), dtype="fp32"
    )
    with memgraft.Bank.open([bank.path, over.path]) as stack:
        assert stack.index[3] == (8, 8)
        assert stack.to_pandas().key.tolist() == [*KEYS, (8, 8)]
    with pytest.raises(ArgumentError, match="is closed"):
        stack.lookup([8, 8])


def test_tables_for_pandas(bank, keys):
    pytest.importorskip("pandas")
    table = keys.to_pandas()
    assert table.columns.tolist() == ["order", "count", "documents", "key"]
    assert table["count"].tolist() == [9, 5, 3]
    assert table.index.name == "row"
    assert bank.to_pandas(2).equals(table.iloc[:2])
    with pytest.raises(ArgumentError, match="num_rows: expected at least 0"):
        keys.to_pandas(-1)


def test_a_corpus_by_position(tmp_path):
    with CorpusWriter(tmp_path / "corpus", vocab_size=9) as writer:
        for document in ([1, 2, 3], [4, 5]):
            writer.add(np.array(document, np.uint32))
        path = writer.finish()
    with memgraft.Corpus.open(path) as corpus:
        assert corpus[1] == 2
        assert corpus[-1] == 5
        assert corpus[1:4].tolist() == [2, 3, 4]
        assert corpus[::2].tolist() == [1, 3, 5]
        table = corpus.to_pandas()
        assert table.num_tokens.tolist() == [3, 2]
        assert [row.tolist() for row in table.tokens] == [[1, 2, 3], [4, 5]]
    with pytest.raises(ArgumentError, match="is closed"):
        corpus.tokens(0, 1)


def test_what_is_closed_can_be_shown(tmp_path, make_bank):
    with memgraft.CorpusWriter(tmp_path / "corpus", vocab_size=9) as writer:
        writer.add([1, 2, 1, 2])
        corpus = memgraft.Corpus.open(writer.finish())
    bank = make_bank(9)
    keys, index, stack = bank.keys, bank.index, memgraft.Bank.open([bank.path])
    for opened in (bank, stack, corpus):
        opened.close()
    for shown in (keys, index, bank, stack, stack.keys, stack.index, corpus):
        assert repr(shown).startswith(f"{type(shown).__name__.replace('Stacked', '')}(")
        assert "closed" in repr(shown)


def test_a_bank_knows_its_keys(make_bank):
    bank = make_bank(9)
    assert all(key in bank for key in bank.keys)
    assert list(bank.keys[0]) in bank
    assert (*bank.keys[0], 1, 1, 1) not in bank
    assert "text" not in bank
