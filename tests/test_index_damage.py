"""Damaged files: an error or the same answers, never a crash, a hang or a row that does not exist."""

import struct
from contextlib import suppress

import numpy as np
import pytest

from index_cases import small_set
from memgraft import KeySet, NgramIndex
from memgraft.errors import FormatError, StorageError

TOKENS = np.random.default_rng(5).integers(0, 49, 400)


def small_index() -> NgramIndex:
    keys = KeySet.from_keys([(1,), (1, 2), (2, 3, 1), (4, 4), *[(5, t) for t in range(9)]], vocab_size=10)
    return NgramIndex.build(keys)


EVERY = pytest.mark.parametrize("stride", [53, pytest.param(1, marks=pytest.mark.slow)])


@EVERY
@pytest.mark.parametrize("form", ["fast", "archive"])
def test_every_flipped_byte_is_found_or_harmless(tmp_path, form, stride):
    path = tmp_path / "index.mgi"
    index = small_index()
    index.save(path, form)
    tokens = TOKENS % 10
    want = [a.tolist() for a in index.lookup(tokens)]
    good = path.read_bytes()
    places = list(range(len(good)))
    places = places[::stride]
    caught = 0
    for at in places:
        bad = bytearray(good)
        bad[at] ^= 1 << (at % 8)
        path.write_bytes(bad)
        try:
            damaged = NgramIndex.open(path)
        except FormatError:
            caught += 1
            continue
        try:
            rows, orders = damaged.lookup(tokens)
            assert rows.min() >= -1
            assert rows.max() < len(index)
            assert orders.max() <= index.max_order
            for row in range(len(index)):
                damaged.key(row), damaged.count(row), damaged.documents(row)
            states = damaged.start(1)
            for token in tokens[:20]:
                damaged.advance(states, [token])
        except (FormatError, ValueError):
            pass
        with pytest.raises(FormatError):
            damaged.verify()
        caught += 1
    assert caught == len(places)
    path.write_bytes(good)
    whole = NgramIndex.open(path)
    whole.verify()
    assert [a.tolist() for a in whole.lookup(tokens)] == want


@EVERY
@pytest.mark.parametrize("kind", ["fast", "archive", "keys"])
def test_every_truncation_is_refused_at_open(tmp_path, kind, stride):
    path = tmp_path / "file"
    if kind == "keys":
        small_set(20).save(path)
    else:
        small_index().save(path, kind)
    good = path.read_bytes()
    lengths = {*range(min(len(good), 9000)), len(good) - 1, len(good) // 2, len(good) - 64}
    lengths -= {len(good)}
    for length in sorted(lengths)[::stride]:
        path.write_bytes(good[:length])
        with pytest.raises(FormatError):
            (KeySet if kind == "keys" else NgramIndex).open(path)
    path.write_bytes(good + b"\0")
    with pytest.raises(FormatError, match="overgrown"):
        (KeySet if kind == "keys" else NgramIndex).open(path)


@EVERY
def test_every_flipped_byte_of_a_key_set_is_found(tmp_path, stride):
    path = tmp_path / "keys.mgk"
    small_set(30).save(path)
    good = path.read_bytes()
    for at in [*range(700), *range(4064, len(good))][::stride]:
        bad = bytearray(good)
        bad[at] ^= 0x10
        path.write_bytes(bad)
        with pytest.raises(FormatError):
            KeySet.open(path).verify()


@EVERY
def test_a_damaged_key_set_builds_or_is_refused(tmp_path, stride):
    path = tmp_path / "keys.mgk"
    small_index().key_set().save(path)
    good = path.read_bytes()
    built = 0
    for at in range(0, len(good), stride):
        bad = bytearray(good)
        bad[at] ^= 1 << (at % 8)
        path.write_bytes(bad)
        # Opening reads the header alone, so most of these are built unverified; a panic would be no FormatError.
        with suppress(FormatError):
            index = NgramIndex.build(KeySet.open(path))
            index.lookup(TOKENS % 10)
            built += 1
    assert built < len(good) / stride


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("lengths", lambda values: values + 1, "lengths"),
        ("lengths", lambda values: values * 0, "lengths"),
        ("tokens", lambda values: values + 10, "outside the vocabulary"),
        ("tokens", lambda values: values * 0 + 5, "two rows"),
        ("counts", lambda values: values[::-1], "higher count"),
    ],
)
def test_a_build_says_what_is_wrong_with_the_key_set(tmp_path, section, change, message):
    path = tmp_path / "keys.mgk"
    keys = KeySet.from_keys([(1, 2), (3, 4), (5, 6)], counts=[9, 8, 7], vocab_size=10)
    keys.save(path)
    bad = bytearray(path.read_bytes())
    tag, dtype, size = {"tokens": (1, "<u4", 4), "lengths": (2, "u1", 1), "counts": (4, "<u8", 8)}[section]
    table = [struct.unpack_from("<IIQQ", bad, 512 + 64 * place) for place in range(7)]
    ((offset, length),) = [(offset, length) for found, _, offset, length in table if found == tag]
    values = np.frombuffer(bytes(bad), dtype, length // size, offset)
    bad[offset : offset + length] = change(values).astype(dtype).tobytes()
    path.write_bytes(bad)
    with pytest.raises(FormatError, match=message):
        NgramIndex.build(KeySet.open(path))


def test_other_kinds_of_files_are_named(tmp_path):
    keys, index = tmp_path / "keys.mgk", tmp_path / "index.mgi"
    small_set().save(keys)
    NgramIndex.build(small_set()).save(index)
    with pytest.raises(FormatError, match=r"expected an index \(index.mgi\), got file kind 1"):
        NgramIndex.open(keys)
    with pytest.raises(FormatError, match=r"expected a key set \(keys.mgk\), got file kind 2"):
        KeySet.open(index)
    for at, version in ((12, "2.0"), (14, "1.2")):
        later = bytearray(index.read_bytes())
        later[at] = 2
        (tmp_path / "later.mgi").write_bytes(later)
        with pytest.raises(FormatError, match=rf"expected format 1\.0 to 1\.1, got {version}; .* update memgraft"):
            NgramIndex.open(tmp_path / "later.mgi")
    with pytest.raises(StorageError):
        NgramIndex.open(tmp_path)


def test_replaced_and_deleted_files_keep_answering(tmp_path):
    path = tmp_path / "index.mgi"
    first, second = NgramIndex.build(small_set()), NgramIndex.build(small_set(seed=1))
    first.save(path)
    opened = NgramIndex.open(path)
    second.save(path)
    assert opened.lookup(TOKENS)[0].tolist() == first.lookup(TOKENS)[0].tolist()
    assert NgramIndex.open(path).lookup(TOKENS)[0].tolist() == second.lookup(TOKENS)[0].tolist()
    path.unlink()
    opened.verify()
    assert opened.lookup(TOKENS)[0].tolist() == first.lookup(TOKENS)[0].tolist()


def test_ram_does_not_care_what_happens_to_the_file(tmp_path):
    path = tmp_path / "index.mgi"
    index = NgramIndex.build(small_set())
    index.save(path)
    loaded = NgramIndex.open(path, load="ram")
    with path.open("r+b") as file:
        file.truncate(10)
    assert loaded.lookup(TOKENS)[0].tolist() == index.lookup(TOKENS)[0].tolist()
