import json
import multiprocessing
import os
import pickle
import shutil
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bank_cases import VOCAB, make_keys, make_values
from memgraft.bank import Bank, BankWriter
from memgraft.bank.dtypes import DTYPES, bf16_to_float, channel_scales, float_to_bf16
from memgraft.errors import ArgumentError, FingerprintError, FormatError, MemgraftError, StorageError
from memgraft.index import NgramIndex

SHARDS = [4 << 30, 5000, 1]


def flip(path, at):
    """Changes one byte and keeps length and times."""
    times = os.stat(path)
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def shard(bank, place=0):
    return bank.path / bank.manifest.shards[place].file


def test_create_open_and_read_back(make_bank):
    bank = make_bank(300)
    assert (bank.num_rows, bank.taps, bank.value_dim, bank.dtype) == (300, (8, 9), 24, "bf16")
    assert bank.bytes_per_row == 2 * 24 * 2
    values = make_values(300)
    np.testing.assert_array_equal(bank.values(np.arange(300)), float_to_bf16(values))
    rounded = bf16_to_float(float_to_bf16(values))
    np.testing.assert_array_equal(bank.floats([[5, 0], [299, 5]]), rounded[[[5, 0], [299, 5]]])
    assert bank.values([]).shape == (0, 2, 24)
    bank.verify()
    again = Bank.open(bank.path)
    assert again.fingerprint == bank.fingerprint
    assert sorted(path.name for path in bank.path.iterdir()) == [
        "bank.json",
        "index.mgi",
        "keys.mgk",
        "values-00001-of-00001.safetensors",
    ]
    assert not bank.path.with_name(bank.path.name + ".partial").exists()


def test_other_readers_of_safetensors_agree(make_bank):
    safetensors = pytest.importorskip("safetensors.numpy")
    for dtype in ("fp16", "fp32", "int8"):
        bank = make_bank(40, dtype=dtype)
        tensors = safetensors.load_file(shard(bank))
        np.testing.assert_array_equal(tensors["values"], bank.values(np.arange(40)))
        if dtype == "int8":
            np.testing.assert_array_equal(tensors["scales"], bank.scales([0]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shard_bytes", SHARDS)
def test_staged_is_naive_indexing(make_bank, dtype, shard_bytes):
    created = make_bank(120, dtype=dtype, shard_bytes=shard_bytes)
    banks = {resident: Bank.open(created.path, resident=resident) for resident in (False, True, 17)}
    assert {resident: bank.resident_rows for resident, bank in banks.items()} == {False: 0, True: 120, 17: 17}
    every, floats = created.values(np.arange(120)), created.floats(np.arange(120))

    @settings(max_examples=30, deadline=None)
    @given(rows=st.lists(st.integers(-1, 119), max_size=60), threads=st.integers(1, 3), given_out=st.booleans())
    def check(rows, threads, given_out):
        rows = np.array(rows, np.int32).reshape(1, -1)
        for bank in banks.values():
            out = np.full(60 * bank.bytes_per_row + 7, 0xA5, np.uint8) if given_out else None
            staged = bank.stage(rows=rows, out=out, threads=threads)
            np.testing.assert_array_equal(staged.rows, np.unique(rows[rows >= 0]))
            np.testing.assert_array_equal(np.append(staged.rows, -1)[staged.inverse], rows)
            np.testing.assert_array_equal(staged.values, every[staged.rows])
            if out is not None:
                assert np.shares_memory(staged.values, out) or staged.values.size == 0
                assert (out[staged.facts.num_bytes :] == 0xA5).all()
            np.testing.assert_array_equal(staged.floats(), floats[staged.rows])
            assert staged.facts.num_hits == (rows >= 0).sum()
            assert staged.facts.num_unique == len(staged.rows)

    check()


def test_stage_looks_up(make_bank):
    bank = make_bank(VOCAB + 300)
    tokens = np.random.default_rng(1).integers(0, VOCAB, (3, 40))
    for options in ({}, {"eos_id": 7}, {"segments": np.repeat([[0, 1, 1, -1]], 10, axis=1).repeat(3, axis=0)}):
        staged = bank.stage(tokens, **options)
        rows, orders = bank.index.lookup(tokens, **options)
        padding = options.get("segments", np.zeros_like(tokens)) < 0
        rows, orders = np.where(padding, -1, rows), np.where(padding, 0, orders)
        np.testing.assert_array_equal(np.append(staged.rows, -1)[staged.inverse], rows)
        np.testing.assert_array_equal(staged.orders, orders)
    assert (orders == 2).any()


@pytest.mark.parametrize("rows", [[], [-1, -1], [5], [[3, 3], [3, 3]], list(range(20))])
def test_edge_batches(make_bank, rows):
    bank = make_bank(20)
    rows = np.array(rows, np.int32)
    staged = bank.stage(rows=rows)
    assert staged.inverse.shape == rows.shape
    assert staged.values.shape == (len(np.unique(rows[rows >= 0])), 2, 24)


@pytest.mark.parametrize("bad", [20, -2, 2**31 - 1, -(2**31), 2**40])
def test_bad_rows_leave_out_alone(make_bank, bad):
    bank = make_bank(20)
    out = np.full(20 * bank.bytes_per_row, 7, np.uint8)
    with pytest.raises(ArgumentError, match=str(bad).lstrip("-")):
        bank.stage(rows=np.array([1, bad, 2]), out=out)
    with pytest.raises(ArgumentError):
        bank.values([bad])
    assert (out == 7).all()


def test_bad_outputs_are_refused(make_bank):
    bank = make_bank(20)
    with pytest.raises(ArgumentError, match="expected at least 192"):
        bank.stage(rows=[1, 2], out=np.empty(191, np.uint8))
    frozen = np.zeros(10_000, np.uint8)
    frozen.flags.writeable = False
    for out in (np.zeros((100, 100), np.uint8)[:, ::2], frozen, bytearray(10_000)):
        with pytest.raises(ArgumentError, match="out"):
            bank.stage(rows=[1, 2], out=out)
    # What is read and what is written share memory, as where another thread uses `out`.
    shared = np.zeros(10_000, np.uint8)
    with pytest.raises(ArgumentError, match="out: expected a writeable array that nobody else is using"):
        bank.stage(rows=shared[:8].view(np.int32), out=shared)
    with pytest.raises(ArgumentError, match="tokens or rows"):
        bank.stage()
    with pytest.raises(ArgumentError, match="float64"):
        bank.stage(rows=[0.5])
    with pytest.raises(ArgumentError, match="orders"):
        bank.stage(rows=[1, 2], orders=[1])


def test_pickles_by_reference(make_bank):
    bank = make_bank(300)
    data = pickle.dumps(bank)
    assert len(data) < 1000
    assert pickle.loads(data).fingerprint == bank.fingerprint
    other = make_bank(300, values=make_values(300, seed=1))
    shutil.rmtree(bank.path)
    other.path.rename(bank.path)
    with pytest.raises(FingerprintError, match="another bank"):
        pickle.loads(data)


def test_fingerprint_names_the_content(make_bank):
    base = make_bank(50).fingerprint
    assert make_bank(50).fingerprint == base
    assert make_bank(50, values=make_values(50, seed=1)).fingerprint != base
    assert make_bank(50, dtype="fp16").fingerprint != base
    assert make_bank(50, dropped={"partial UTF-8": 3}).fingerprint != base


def test_broken_directories_are_refused_by_name(make_bank, tmp_path):
    bank, other = make_bank(300), make_bank(200)
    twin = make_bank(300, values=make_values(300, seed=1))
    files = ["bank.json", "keys.mgk", "index.mgi", shard(bank).name]
    copy = tmp_path / "copy"

    def broken(change, error, match):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(bank.path, copy)
        change()
        with pytest.raises(error, match=match):
            Bank.open(copy)

    for name in files:
        broken(lambda name=name: (copy / name).unlink(), StorageError, f"{name}: not found")
        broken(lambda name=name: os.truncate(copy / name, 100), (FormatError, StorageError), name)
        broken(lambda name=name: os.truncate(copy / name, 0), (FormatError, StorageError), name)
    for name in files[1:]:
        broken(lambda name=name: shutil.copy(other.path / name, copy / name), MemgraftError, name)
    broken(lambda: shutil.copy(shard(twin), copy / files[3]), FingerprintError, "expected content")
    broken(lambda: shutil.copy(twin.path / "bank.json", copy / "bank.json"), FingerprintError, "expected content")

    def edit(**entries):
        facts = json.loads((copy / "bank.json").read_text())
        (copy / "bank.json").write_text(json.dumps({**facts, **entries}))

    broken(lambda: edit(format_version="2.0"), FormatError, "expected format version 1.0, found 2.0")
    broken(lambda: edit(value_dim=25), FormatError, "edited or damaged")
    broken(lambda: edit(donor={}), FormatError, "edited or damaged")
    broken(lambda: (copy / "bank.json").write_text("{"), FormatError, "not JSON")
    broken(lambda: (copy / "bank.json").write_text("[]"), FormatError, "not a bank")
    broken(lambda: (copy / "bank.json").write_bytes(b"\xff\xfe"), FormatError, "not UTF-8")
    broken(lambda: (copy / "bank.json").write_text('{"format_version": "1.0"}'), FormatError, "expected the entries")
    with pytest.raises(StorageError, match=r"nowhere.*bank\.json: not found"):
        Bank.open(tmp_path / "nowhere")


def test_swapped_shards_are_refused(make_bank):
    bank = make_bank(300, shard_bytes=96 * 100)
    assert len(bank.manifest.shards) == 3
    a, b, spare = shard(bank, 0), shard(bank, 1), bank.path / "spare"
    a.rename(spare), b.rename(a), spare.rename(b)
    with pytest.raises(FingerprintError, match=r"values-00001-of-00003.*expected content"):
        Bank.open(bank.path)


def test_verify_finds_a_flipped_bit(make_bank):
    bank = make_bank(300, shard_bytes=48 * 100, dtype="fp8_e4m3")
    seen = []
    bank.verify(progress=lambda *call: seen.append(call))
    assert {phase for phase, _, _ in seen} == {"verify"}
    assert seen[-1][1] == seen[-1][2] > 0
    for place, at in ((1, -1), (2, 4096), (0, -5000)):
        path = shard(bank, place)
        at = path.stat().st_size + at if at < 0 else at
        flip(path, at)
        with pytest.raises(FormatError, match=rf"{path.name}.*damaged"):
            Bank.open(bank.path).verify()
        flip(path, at)
    Bank.open(bank.path).verify()


def test_changes_under_an_open_bank_are_errors(make_bank):
    for change in ("truncate", "replace", "overwrite"):
        bank = make_bank(300)
        path = shard(bank)
        if change == "truncate":
            os.truncate(path, 4200)
        elif change == "replace":
            shutil.copy(path, path.with_name("copy"))
            path.with_name("copy").rename(path)
        else:
            time.sleep(0.02)
            with path.open("r+b") as file:
                file.write(b"x")
        with pytest.raises(FormatError, match=path.name):
            bank.stage(rows=[299])


def _stage_in_child(bank, queue):
    queue.put(bank.stage(rows=np.arange(bank.num_rows), threads=2).values.sum())


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_children_stage_after_parallel_use(make_bank, method):
    bank = make_bank(2000, value_dim=600)
    expected = bank.stage(rows=np.arange(2000), threads=2).values.sum()
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=_stage_in_child, args=(bank, queue))
    child.start()
    assert queue.get(timeout=30) == expected
    child.join(30)
    assert child.exitcode == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shard_bytes", SHARDS[:2])
def test_cold_readers_give_the_same_bytes(make_bank, dtype, shard_bytes):
    created = make_bank(400, dtype=dtype, shard_bytes=shard_bytes, value_dim=200)
    rows = np.random.default_rng(0).integers(-1, 400, (3, 200))
    expected = created.values(np.arange(400))
    for reader in ("pread", "io_uring"):
        bank = pickle.loads(pickle.dumps(Bank.open(created.path, cold_reader=reader)))
        for place in range(len(bank.manifest.shards)):
            with shard(bank, place).open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        staged = bank.stage(rows=rows)
        np.testing.assert_array_equal(staged.values, expected[staged.rows])
        assert bank.cold_reader == staged.facts.cold_reader
        assert bank.cold_reader == reader or "refuses io_uring" in bank.cold_reader
    with pytest.raises(ArgumentError, match="expected one of pread, io_uring"):
        Bank.open(created.path, cold_reader="aio")


def test_index_of_other_keys_is_refused(make_bank):
    with pytest.raises(FingerprintError, match="build it from these keys"):
        make_bank(50, index=NgramIndex.build(make_keys(51)))
    with pytest.raises(ArgumentError, match=r"expected .50 keys, 2 taps"):
        make_bank(50, values=make_values(49))


def test_int8_writer_needs_scales(tmp_path):
    options = {"keys": make_keys(5), "taps": (8,), "value_dim": 4, "donor": {}, "tokenizer": {}}
    with pytest.raises(ArgumentError, match="need channel scales"):
        BankWriter(tmp_path / "a", dtype="int8", **options)
    with pytest.raises(ArgumentError, match=r"expected \(1, 4\)"):
        BankWriter(tmp_path / "a", dtype="int8", scales=np.ones((4, 1), np.float32), **options)
    values = make_values(5, 1, 4)
    with BankWriter(tmp_path / "a", dtype="int8", scales=channel_scales(values), **options) as writer:
        writer.write(0, values)
        assert np.abs(writer.finish().floats(range(5)) - values).max() < 0.02
