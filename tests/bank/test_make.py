"""Banks made of banks against the stack, and key sets against Python's sets."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_overlay import KEYS, VOCAB, longest, one_dictionary, write

from memgraft import Bank, Corpus, KeySet, NgramIndex, coverage, keysets, mine
from memgraft.bank import make
from memgraft.bank.rewrite import requantise
from memgraft.corpus import CorpusWriter, sample_of
from memgraft.corpus.sample import joint_sample
from memgraft.errors import ArgumentError, FingerprintError, FormatError, StorageError


@given(st.lists(KEYS, min_size=2, max_size=4), st.sampled_from(["fp32", "fp8_e4m3", "bf16"]), st.integers(0, 2**31))
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_merged_answers_as_stacked(tmp_path_factory, sets, dtype, seed):
    folder = tmp_path_factory.mktemp("merge")
    banks = [write(folder / f"b{i}", keys, dtype=dtype) for i, keys in enumerate(sets)]
    stack = Bank.open([bank.path for bank in banks])
    if not len(stack):
        with pytest.raises(ArgumentError, match="at least one row"):
            make.merge(stack.paths, folder / "m")
        return
    merged = make.merge(stack.paths, folder / "m")
    dictionary = one_dictionary(banks)
    assert set(merged.keys) == set(dictionary)
    counts = merged.keys.arrays().counts
    assert (np.diff(counts.astype(np.int64)) <= 0).all()
    for row, key in enumerate(merged.keys):
        assert merged.keys.count(row) == sum(keys.get(key, 0) for keys in sets)
        stacked_row, value = dictionary[key]
        np.testing.assert_array_equal(merged.floats([row])[0], value)
        assert merged.origin_of(row) == stack.origin_of(stacked_row)
    tokens = np.random.default_rng(seed).integers(0, VOCAB, 120)
    rows, orders = merged.lookup(tokens)
    want, want_orders = stack.lookup(tokens)
    np.testing.assert_array_equal(orders, want_orders)
    np.testing.assert_array_equal(orders, longest(dictionary, tokens, np.zeros(120, int))[1])
    hits = rows >= 0
    np.testing.assert_array_equal(merged.floats(rows[hits]), stack.floats(want[hits]))
    merged.verify()


def test_merging_merged_banks_keeps_every_source(tmp_path):
    sets = [{(1,): 5, (2,): 1}, {(2,): 7, (3,): 2}, {(3,): 1, (4,): 9}]
    a, b, c = (write(tmp_path / name, keys) for name, keys in zip("abc", sets, strict=True))
    ab = make.merge([a.path, b.path], tmp_path / "ab")
    once = make.merge([ab.path, c.path], tmp_path / "abc")
    assert [once.origin_of(row)["bank"] for row in range(4)] == ["c", "b", "a", "c"]
    assert [once.keys.key(row) for row in range(4)] == [(4,), (2,), (1,), (3,)]
    assert once.keys.arrays().counts.tolist() == [9, 8, 5, 3]
    assert once.origin_of(1)["corpus"] == {"fingerprint": "b"}
    assert Bank.open([once.path, b.path]).origin_of(4)["bank"] == "b"
    stored = requantise(once, tmp_path / "stored", "fp16" if once.dtype != "fp16" else "bf16")
    assert [stored.origin_of(row)["bank"] for row in range(4)] == ["c", "b", "a", "c"]
    stored.verify()
    (once.path / "origins.npy").write_bytes(b"other")
    with pytest.raises(FormatError, match=r"origins\.npy: damaged"):
        Bank.open(once.path).verify()
    (once.path / "origins.npy").unlink()
    with pytest.raises(StorageError, match=r"origins\.npy"):
        Bank.open(once.path).origin_of(0)


def test_int8_banks_of_one_scale_stack_and_merge(tmp_path):
    scales = np.full((2, 4), 0.01, np.float32)
    values = np.random.default_rng(0).normal(size=(2, 2, 4)).astype(np.float32).clip(-1.2, 1.2)
    paths = []
    for name, keys in (("base", [(1,), (2,)]), ("over", [(2,), (3,)])):
        writer = __import__("memgraft").BankWriter(
            tmp_path / name,
            keys=KeySet.from_keys(keys, vocab_size=VOCAB),
            taps=(2, 5),
            value_dim=4,
            dtype="int8",
            donor={"fingerprint": "d"},
            tokenizer={"fingerprint": "e"},
            scales=scales,
        )
        with writer:
            writer.write(0, values + len(paths) * 0.03)
            paths.append(writer.finish(corpus={"fingerprint": name}).path)
    stack, merged = Bank.open(paths), make.merge(paths, tmp_path / "m")
    rows = [stack.index.find(merged.keys.key(row)) for row in range(3)]
    np.testing.assert_array_equal(merged.floats(np.arange(3)), stack.floats(rows))


def mined_bank(folder, name, sampled=True):
    """A bank with the keys of a corpus of its own, and that corpus."""
    with CorpusWriter(folder / f"corpus-{name}", vocab_size=VOCAB) as writer:
        writer.add(np.random.default_rng(ord(name)).integers(0, VOCAB, 400, np.uint32))
        corpus = Corpus.open(writer.finish())
    keys = mine(corpus, (1, 2), 20, sample=sampled)
    facts = {"fingerprint": "d" * 64}
    values = np.zeros((len(keys), 1, 2), np.float32)
    made = Bank.create(folder / name, keys=keys, values=values, taps=(0,), dtype="fp32", donor=facts, tokenizer=facts)
    return made, corpus


def test_the_sample_of_the_mined_documents_goes_along(tmp_path):
    (a, of_a), (b, of_b), (c, of_c) = (mined_bank(tmp_path, name, sampled=name != "c") for name in "abc")
    both = joint_sample([a.keys, b.keys]).to_bytes()
    stack = Bank.open([a.path, b.path])
    merged = make.merge([a.path, b.path], tmp_path / "merged")
    short = make.truncate(stack.paths, 5, tmp_path / "short")
    for bank in (stack, merged, short):
        assert sample_of(bank.keys).to_bytes() == both
        for corpus, known in ((of_a, True), (of_b, True), (of_c, False)):
            found = coverage(bank, corpus)
            assert (found["mined_from_it"], found["shared_with_mined"]) == (known, float(known))
    merged.verify()
    # Merged again, each corpus counts once.
    assert sample_of(make.merge([merged.path, a.path], tmp_path / "again").keys).corpus == sample_of(merged.keys).corpus
    # What one bank does not say is not known of the whole.
    whole = make.merge([a.path, c.path], tmp_path / "whole")
    assert sample_of(whole.keys) is None
    assert not (whole.path / "keys.mgk.sample").exists()
    alone = make.subtract(a.path, write(tmp_path / "other", {(0, 0): 1}, donor="d" * 64).path, tmp_path / "alone")
    assert sample_of(alone.keys).to_bytes() == sample_of(a.keys).to_bytes()


def test_subtract_and_truncate(tmp_path):
    a = write(tmp_path / "a", {(1,): 5, (2,): 1, (1, 2): 3})
    b = write(tmp_path / "b", {(2,): 7, (3,): 2})
    rest = make.subtract(a.path, b.path, tmp_path / "rest")
    assert list(rest.keys) == [(1,), (1, 2)]
    np.testing.assert_array_equal(rest.values([0, 1]), a.values([0, 1]))
    first = make.truncate(a.path, 2, tmp_path / "first")
    assert list(first.keys) == [(1,), (1, 2)]
    top = make.truncate([a.path, b.path], 2, tmp_path / "top")
    assert list(top.keys) == [(2,), (1,)]
    assert [top.origin_of(row)["bank"] for row in range(2)] == ["b", "a"]
    with pytest.raises(ArgumentError, match="at least one row"):
        make.subtract(a.path, a.path, tmp_path / "nothing")
    for wrong in (0, 4):
        with pytest.raises(ArgumentError, match="num_rows: expected 1 to 3"):
            make.truncate(a.path, wrong, tmp_path / "wrong")
    with pytest.raises(ArgumentError, match="two or more"):
        make.merge([a.path], tmp_path / "one")
    with pytest.raises(ArgumentError, match="exists"):
        make.merge([a.path, b.path], a.path)


@given(st.lists(KEYS, min_size=1, max_size=4))
@settings(max_examples=30)
def test_key_sets_as_sets(sets):
    made = [KeySet.from_keys(list(keys), list(keys.values()), vocab_size=VOCAB) for keys in sets]
    everything = set().union(*sets)
    joint = keysets.union(made)
    assert {key: joint.count(row) for row, key in enumerate(joint)} == {
        key: sum(keys.get(key, 0) for keys in sets) for key in everything
    }
    common = keysets.intersect(made)
    assert {key: common.count(row) for row, key in enumerate(common)} == {
        key: count for key, count in sets[0].items() if all(key in keys for keys in sets)
    }
    rest = keysets.subtract(made)
    assert set(rest) == set(sets[0]).difference(*sets[1:])
    index = NgramIndex.build(made[-1])
    assert keysets.rows_in(joint, index).tolist() == [-1 if (row := index.find(key)) is None else row for key in joint]


def test_key_sets_of_different_tokens_are_refused():
    one = KeySet.from_keys([(1,)], vocab_size=5, metadata={"tokenizer": "a"})
    with pytest.raises(ArgumentError, match="vocabulary of 5"):
        keysets.union([one, KeySet.from_keys([(1,)], vocab_size=6)])
    with pytest.raises(FingerprintError, match="tokenizer a"):
        keysets.subtract([one, KeySet.from_keys([(1,)], vocab_size=5, metadata={"tokenizer": "b"})])
    with pytest.raises(ArgumentError, match="at least one"):
        keysets.intersect([])
