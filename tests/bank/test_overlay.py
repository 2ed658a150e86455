"""Stacks of banks against one dictionary of (key: value)."""

import json
import pickle
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memgraft import Bank, Cursor, KeySet, NgramIndex
from memgraft._core import fingerprint_bytes
from memgraft.bank import make
from memgraft.bank.dtypes import DTYPES
from memgraft.errors import ArgumentError, FingerprintError, FormatError, StorageError

VOCAB = 6
KEYS = st.dictionaries(
    st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=4).map(tuple), st.integers(0, 3), max_size=25
)


def write(
    path,
    keys: dict,
    *,
    taps=(2, 5),
    dtype="fp32",
    donor="d" * 64,
    tokenizer="e" * 64,
    vocab_size=VOCAB,
    value_dim=4,
    reads=None,
):
    """A bank whose values are made from the key and the path's name, so that every row is told apart."""
    listed = sorted(keys)
    made = KeySet.from_keys(listed, [keys[key] for key in listed], vocab_size=vocab_size)
    rng = np.random.default_rng(zlib.crc32(path.name.encode()))
    values = rng.normal(size=(len(made), len(taps), value_dim)).astype(np.float32)
    return Bank.create(
        path,
        keys=made,
        values=values,
        taps=taps,
        dtype=dtype,
        donor={"fingerprint": donor, "name": "tiny", **(reads or {})},
        tokenizer={"fingerprint": tokenizer},
        corpus={"fingerprint": path.name},
    )


def one_dictionary(banks: list[Bank]) -> dict:
    """Key to (row of the stack, value), later banks over earlier ones."""
    found, first = {}, 0
    for bank in banks:
        values = bank.floats(np.arange(len(bank)))
        found |= {key: (first + row, values[row]) for row, key in enumerate(bank.keys)}
        first += len(bank)
    return found


def longest(dictionary: dict, tokens, segments):
    """Brute force: (rows, orders, values) for one sequence."""
    rows, orders = np.full(len(tokens), -1, np.int32), np.zeros(len(tokens), np.uint8)
    begin = 0
    for at in range(len(tokens)):
        if at and segments[at] != segments[at - 1]:
            begin = at
        for order in range(min(4, at + 1 - begin), 0, -1):
            hit = dictionary.get(tuple(tokens[at + 1 - order : at + 1].tolist()))
            if hit is not None and segments[at] >= 0:
                rows[at], orders[at] = hit[0], order
                break
    return rows, orders


@given(
    st.lists(st.tuples(KEYS, st.sampled_from(list(DTYPES))), min_size=2, max_size=4),
    st.integers(0, 2**31),
    st.lists(st.integers(-1, 2), min_size=1, max_size=12),
    st.sampled_from([1, 3]),
)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_stack_is_one_dictionary(tmp_path_factory, sets, seed, segments, threads):
    folder = tmp_path_factory.mktemp("stack")
    # Banks of equal keys are one bank only where their values are equal too: names tell them apart here.
    banks = [write(folder / f"b{i}", keys, dtype=dtype) for i, (keys, dtype) in enumerate(sets)]
    dictionary = one_dictionary(banks)
    stack = Bank.open([bank.path for bank in banks], resident=seed % 7)
    segments = np.repeat(segments, 7)
    tokens = np.random.default_rng(seed).integers(0, VOCAB, len(segments))
    rows, orders = stack.lookup(tokens, segments=segments, threads=threads)
    want_rows, want_orders = longest(dictionary, tokens, segments)
    np.testing.assert_array_equal(rows, want_rows)
    np.testing.assert_array_equal(orders, want_orders)
    staged = stack.stage(tokens, segments=segments, threads=threads)
    by_row = dict(dictionary.values())
    for row, value in zip(staged.rows, staged.floats(), strict=True):
        np.testing.assert_array_equal(value, by_row[row])
    np.testing.assert_array_equal(
        np.where(staged.inverse < 0, -1, np.append(staged.rows, -1)[staged.inverse]), want_rows
    )
    assert [stack.index.find(key) for key in dictionary] == [row for row, _ in dictionary.values()]
    cursor, plain = Cursor(stack.index, 1), longest(dictionary, tokens, np.zeros_like(segments))
    stepped = [cursor.advance(stack.index, [token]) for token in tokens]
    assert [int(row[0]) for row, _ in stepped] == plain[0].tolist()
    assert [int(order[0]) for _, order in stepped] == plain[1].tolist()


def test_banks_of_several_types_are_one_memory(tmp_path):
    kinds = ("bf16", "bf16", "int8", "int8", "fp8_e4m3", "fp16")
    banks = [write(tmp_path / f"b{i}", {(i,): 2, (i, i): 1}, dtype=dtype) for i, dtype in enumerate(kinds)]
    stack = Bank.open([bank.path for bank in banks], resident=True)
    assert stack.dtype == "fp32"
    assert stack.bytes_per_row == 2 * 4 * 4
    assert stack.resident_rows == stack.num_rows == 12
    assert stack.warm(3) > 0
    stack.verify()
    want = np.concatenate([bank.floats(np.arange(2)) for bank in banks])
    rows = np.array([[11, 0, 5], [4, 4, 7]])
    np.testing.assert_array_equal(stack.floats(rows), want[rows])
    # More rows than are decoded at a time.
    many = np.random.default_rng(0).integers(0, 12, 150_000)
    np.testing.assert_array_equal(stack.floats(many), want[many])
    np.testing.assert_array_equal(stack[-1], want[-1])
    staged = stack.stage(rows=np.array([[5, -1, 11], [5, 0, -1]]), out=np.empty(3 * 8, np.float32))
    np.testing.assert_array_equal(staged.floats(), want[[0, 5, 11]])
    np.testing.assert_array_equal(staged.inverse, [[1, -1, 2], [1, 0, -1]])
    assert (staged.scales, staged.facts.num_unique, staged.facts.num_bytes) == (None, 3, 96)
    for wrong in ([12], [-2]):
        with pytest.raises(ArgumentError, match="row"):
            stack.stage(rows=wrong)
        with pytest.raises(ArgumentError, match="row"):
            stack.values(wrong)
    with pytest.raises(ArgumentError, match="expected at least"):
        stack.stage(rows=[0, 1], out=np.empty(8, np.float32))
    again = pickle.loads(pickle.dumps(stack))
    np.testing.assert_array_equal(again.floats(rows), want[rows])
    merged = make.merge(stack.paths, tmp_path / "merged")
    for row, key in enumerate(merged.keys):
        np.testing.assert_array_equal(merged[row], want[stack.index.find(key)])
    alike = Bank.open([write(tmp_path / name, {(1,): 1}, dtype="bf16").path for name in ("x", "y")])
    assert alike.dtype == "bf16"


def test_a_bank_that_records_no_value_space_has_the_one_that_is_computed(tmp_path):
    path = write(tmp_path / "new", {(1,): 1}, reads={"prefix": [7]}).path / "bank.json"
    space = Bank.open(path.parent).space
    facts = json.loads(path.read_text())
    assert facts["value_space"]["fingerprint"] == space
    assert facts["value_space"]["prefix"] == [7]

    def rewritten(**changes):
        content = {name: value for name, value in (facts | changes).items() if name not in ("fingerprint", "tool")}
        content = {name: value for name, value in content.items() if value is not None}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        path.write_text(json.dumps({**content, "tool": "x", "fingerprint": fingerprint_bytes(text.encode())}))
        return Bank.open(path.parent)

    old = rewritten(value_space=None)
    assert (old.space, old.manifest.value_space) == (space, facts["value_space"])
    # What is recorded counts, whatever a later version would compute.
    assert rewritten(value_space={**facts["value_space"], "fingerprint": "a" * 64}).space == "a" * 64
    with pytest.raises(FormatError, match="value_space"):
        rewritten(value_space=["a"])


@pytest.fixture
def banks(tmp_path):
    base = write(tmp_path / "base", {(1,): 5, (1, 2): 3, (4, 4, 4): 1})
    law = write(tmp_path / "law", {(1, 2): 1, (2, 3): 9})
    alice = write(tmp_path / "alice", {(0, 1, 2): 1})
    return base, law, alice


def test_a_stack_behaves_like_a_bank(banks):
    base, law, alice = banks
    stack = Bank.open([bank.path for bank in banks])
    assert len(stack) == stack.num_rows == 6
    assert len(stack.index) == len(stack.keys) == 6
    assert stack.path == base.path
    assert stack.paths == tuple(bank.path for bank in banks)
    assert [layer.first_row for layer in stack.layers] == [0, 3, 5]
    assert stack.layer_of(4).path == law.path
    assert stack.layer_of(4).manifest.corpus["fingerprint"] == "law"
    assert list(stack.keys) == [*base.keys, *law.keys, *alice.keys] == [stack.keys.key(row) for row in range(6)]
    assert stack.keys.num_keys_by_order == {1: 1, 2: 3, 3: 2}
    arrays = stack.keys.arrays(2, 6)
    assert arrays.counts.tolist() == [stack.keys.count(row) for row in range(2, 6)]
    assert arrays.offsets.tolist() == [0, 3, 5, 7, 10]
    assert stack.lookup([0, 1, 2, 3])[0].tolist() == [-1, 0, 5, 3]
    np.testing.assert_array_equal(
        stack.values([3, 0, 5]), np.concatenate([law.values([0]), base.values([0]), alice.values([0])])
    )
    stack.verify()
    stack.keys.verify()
    assert stack.warm() > 0
    again = pickle.loads(pickle.dumps(stack))
    assert again.fingerprint == stack.fingerprint not in {bank.fingerprint for bank in banks}
    assert again.lookup([0, 1, 2, 3])[0].tolist() == [-1, 0, 5, 3]
    resident = Bank.open(stack.paths, resident=4)
    assert resident.resident_rows == 4
    np.testing.assert_array_equal(resident.values(np.arange(6)), stack.values(np.arange(6)))


def test_an_overlay_removed_leaves_the_base(banks):
    base, law, _ = banks
    tokens = np.random.default_rng(0).integers(0, VOCAB, 200)
    before = base.lookup(tokens)
    Bank.open([base.path, law.path]).lookup(tokens)
    alone = Bank.open([base.path])
    assert alone.fingerprint == base.fingerprint
    np.testing.assert_array_equal(alone.lookup(tokens), before)


def test_order_of_the_banks_counts_and_nesting_is_flat(banks):
    base, law, alice = (bank.path for bank in banks)
    assert Bank.open([[base, law], alice]).fingerprint == Bank.open([base, [law, [alice]]]).fingerprint
    swapped = Bank.open([law, base])
    assert Bank.open(f"{base},{law}/,{alice}").fingerprint == Bank.open([base, law, alice]).fingerprint
    assert swapped.fingerprint != Bank.open([base, law]).fingerprint
    assert swapped.index.find((1, 2)) == 2 + list(banks[0].keys).index((1, 2))


def test_an_empty_overlay_changes_nothing(banks, tmp_path):
    base = banks[0]
    empty = write(tmp_path / "empty", {})
    for paths in ([base.path, empty.path], [empty.path, base.path]):
        stack = Bank.open(paths)
        tokens = np.array([1, 2, 4, 4, 4, 0])
        np.testing.assert_array_equal(stack.lookup(tokens), base.lookup(tokens))
        np.testing.assert_array_equal(stack.values(np.arange(3)), base.values(np.arange(3)))


def test_what_does_not_stack_is_refused(banks, tmp_path):
    base, law, _ = banks
    with pytest.raises(ArgumentError, match="same bank"):
        Bank.open([base.path, law.path, base.path])
    with pytest.raises(ArgumentError, match="at least one"):
        Bank.open([])
    circle = [base.path]
    circle.append(circle)
    with pytest.raises(ArgumentError, match="contains itself"):
        Bank.open(circle)
    with pytest.raises(ArgumentError, match="expected a path"):
        Bank.open([base.path, 7])
    with pytest.raises(StorageError, match=r"bank\.json"):
        Bank.open([base.path, tmp_path / "nowhere"])
    for name, options in {
        "donor": {"donor": "f" * 64},
        "tokenizer": {"tokenizer": "f" * 64},
        "taps": {"taps": (2, 6)},
        "value_dim": {"value_dim": 5},
        "prefix": {"reads": {"prefix": [7]}},
        "prepend_bos": {"reads": {"prepend_bos": True}},
        "contexts": {"reads": {"contexts": {"occurrences": 2, "left": 3}}},
    }.items():
        other = write(tmp_path / name, {(1,): 1}, **options)
        with pytest.raises(FingerprintError, match=f"expected {name} ") as refused:
            Bank.open([base.path, other.path])
        assert str(refused.value).count("expected ") == 1
    with pytest.raises(ArgumentError, match="vocabulary"):
        Bank.open([base.path, write(tmp_path / "wide", {(1,): 1}, vocab_size=VOCAB + 1).path])
    stack = Bank.open([base.path, law.path])
    with pytest.raises(ArgumentError, match="bank merge"):
        NgramIndex.build(stack.keys)
    for refused in (lambda: stack.index.save(tmp_path / "x.mgi"), lambda: stack.keys.save(tmp_path / "x.mgk")):
        with pytest.raises(ArgumentError, match="bank merge"):
            refused()


def test_a_base_replaced_under_an_overlay_is_noticed(banks, tmp_path):
    base, law, _ = banks
    stack = Bank.open([base.path, law.path])
    pickled = pickle.dumps(stack)
    shard = next(base.path.glob("values-*"))
    shard.write_bytes(shard.read_bytes())
    with pytest.raises(FormatError):
        stack.values([0])
    np.testing.assert_array_equal(stack.values([3]), law.values([0]))
    base.path.rename(tmp_path / "old")
    write(base.path, {(3,): 1})
    with pytest.raises(FingerprintError, match="another bank has taken its place"):
        pickle.loads(pickled)


@pytest.mark.slow
def test_a_thousand_overlays(tmp_path):
    rng = np.random.default_rng(0)
    sets = [{tuple(rng.integers(0, VOCAB, rng.integers(1, 5)).tolist()): 1} for _ in range(1001)]
    banks = [write(tmp_path / f"b{i}", keys) for i, keys in enumerate(sets)]
    stack = Bank.open([bank.path for bank in banks])
    tokens = rng.integers(0, VOCAB, 3000)
    rows, orders = stack.lookup(tokens, threads=2)
    want = longest(one_dictionary(banks), tokens, np.zeros(3000, int))
    np.testing.assert_array_equal(rows, want[0])
    np.testing.assert_array_equal(orders, want[1])
    staged = stack.stage(tokens)
    np.testing.assert_array_equal(staged.floats(), stack.floats(staged.rows))
