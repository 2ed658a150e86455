"""Harvests end to end on a tiny donor: values, resumption, refusals."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from memgraft.bank import Bank
from memgraft.bank.health import bank_health, health_warnings, whole_health
from memgraft.errors import ArgumentError, DonorError, FingerprintError, FormatError, KeySetError, TokenError
from memgraft.harvesting import harvest, open_donor, plan_harvest
from memgraft.keyset import KeySet
from memgraft.tokenizer import mapping_facts
from tiny import byte_bpe, tiny_donor, tiny_text


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a donor, a recipient tokenizer and a key set that holds one key cut inside a character."""
    folder = tmp_path_factory.mktemp("harvest")
    tiny_donor(folder / "donor")
    tokenizer = byte_bpe([tiny_text(1)], 300)
    tokenizer.save(str(folder / "tokenizer.json"))
    ids = tokenizer.encode(tiny_text(1)).ids
    counts: dict[tuple[int, ...], int] = {}
    for order in (2, 3, 4):
        for start in range(len(ids) - order):
            key = tuple(ids[start : start + order])
            counts[key] = counts.get(key, 0) + 1
    cut = tuple(tokenizer.encode("\N{SNOWMAN}").ids[:2])
    counts[cut] = 7
    keys = KeySet.from_keys(list(counts), counts=list(counts.values()), vocab_size=300)
    keys.save(folder / "keys.mgk")
    return folder


@pytest.fixture(scope="module")
def keys(place):
    return KeySet.open(place / "keys.mgk")


def run(place, out, **changes):
    options = {
        "recipient_tokenizer": place / "tokenizer.json",
        "donor": place / "donor",
        "taps": (0, 2),
        "chunk_rows": 64,
        "prefix": "none",
    }
    keys = changes.pop("keys", None) or KeySet.open(place / "keys.mgk")
    return harvest(keys, **{**options, "compute_dtype": "float32", "dtype": "fp32", **changes}, out=out)


def contents(bank: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(bank.iterdir())}


def test_the_bank_holds_the_tokenizer_and_the_dropped_keys(place, keys, tmp_path):
    bank = run(place, tmp_path / "bank")
    cut = next(key for key in keys if key not in bank.index)
    assert bank.dropped_keys() == [{"key": cut, "count": 7, "reason": "partial_utf8"}]
    assert bank.tokenizer_path == tmp_path / "bank" / "tokenizer.json"
    assert bank.tokenizer_path.read_bytes() == (place / "tokenizer.json").read_bytes()
    table = bank.to_pandas(3)
    assert table.text.tolist() == [memgraft_tokenizer(place).decode(list(key)) for key in table.key]
    bank.verify()
    byte_bpe([tiny_text(5)], 290).save(str(bank.tokenizer_path))
    with pytest.raises(FormatError, match=r"tokenizer\.json: not the tokenizer of the bank"):
        bank.verify()
    bank.tokenizer_path.unlink()
    (tmp_path / "bank" / "dropped.jsonl").write_text("")
    with pytest.raises(FormatError, match="expected 1 dropped keys, found 0"):
        bank.verify()
    assert run(place, tmp_path / "bare", keep_tokenizer=False).tokenizer_path is None


def test_a_tokenizer_given_as_an_object_is_kept_too(place, tmp_path):
    bank = run(place, tmp_path / "bank", recipient_tokenizer=memgraft_tokenizer(place), taps=(1,))
    assert bank.tokenizer_path is not None
    bank.verify()


def test_errors_that_need_no_donor_come_before_it(place, tmp_path):
    for changes, message in (
        ({"device": "cuda:99"}, "device: expected a CUDA card for cuda:99, found"),
        ({"device": "abacus"}, "device: expected cpu, cuda or cuda:0"),
        ({"round_trip": "both"}, 'round_trip: expected "text" or "ids"'),
    ):
        phases = []
        with pytest.raises(ArgumentError, match=message):
            run(place, tmp_path / "bank", progress=lambda phase, *_, seen=phases: seen.append(phase), **changes)
        assert phases == []


def test_every_row_is_the_donors_state_at_the_keys_last_token(place, keys, tmp_path):
    bank = run(place, tmp_path / "bank")
    donor = open_donor(place / "donor", compute_dtype="float32")
    tokenizer = memgraft_tokenizer(place)
    assert bank.num_rows == len(keys) - 1
    assert dict(bank.manifest.dropped) == {"partial_utf8": 1}
    for row in (0, 1, 57, 200, bank.num_rows - 1):
        text = tokenizer.decode(list(bank.keys.key(row)))
        tokens = donor.tokenizer.encode([text])[0]
        with torch.no_grad():
            states = donor.model(torch.tensor([tokens]), output_hidden_states=True).hidden_states
        expected = torch.stack([states[0][0, -1], states[2][0, -1]]).numpy()
        np.testing.assert_allclose(bank.values(np.array([row], dtype=np.int32))[0], expected, rtol=1e-5, atol=1e-5)
    assert bank.index.find(bank.keys.key(5)) == 5


def memgraft_tokenizer(place):
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(place / "tokenizer.json"))


def test_kept_rows_stay_in_order_of_count(place, keys, tmp_path):
    bank = run(place, tmp_path / "bank")
    kept = [keys.key(row) for row in range(len(keys))]
    dropped = {kept[row] for row in range(len(keys))} - {bank.keys.key(row) for row in range(bank.num_rows)}
    assert len(dropped) == 1
    assert [key for key in kept if key not in dropped] == [bank.keys.key(row) for row in range(bank.num_rows)]


def test_bank_json_names_both_tokenizers_and_the_donor(place, tmp_path):
    bank = run(place, tmp_path / "bank")
    donor = open_donor(place / "donor")
    assert bank.manifest.donor["fingerprint"] == donor.fingerprint
    assert bank.manifest.donor["tokenizer_fingerprint"] == donor.tokenizer.fingerprint
    assert len(bank.manifest.tokenizer["fingerprint"]) == 64
    assert bank.manifest.donor["compute_dtype"] == "float32"
    assert bank.taps == (0, 2)


def test_chunks_and_batches_change_nothing_but_rounding(place, tmp_path):
    one = run(place, tmp_path / "one", chunk_rows=10_000, batch_tokens=4096)
    many = run(place, tmp_path / "many", chunk_rows=37, batch_tokens=8)
    rows = np.arange(one.num_rows, dtype=np.int32)
    np.testing.assert_allclose(one.values(rows), many.values(rows), rtol=1e-4, atol=1e-5)


def test_bf16_is_the_rounded_float32(place, tmp_path):
    wide = run(place, tmp_path / "wide")
    narrow = run(place, tmp_path / "narrow", dtype="bf16")
    rows = np.arange(wide.num_rows, dtype=np.int32)
    expected = torch.from_numpy(wide.values(rows)).to(torch.bfloat16).view(torch.uint16).numpy()
    np.testing.assert_array_equal(narrow.values(rows), expected)


def test_bos_comes_first_when_asked(place, tmp_path):
    plain, headed = run(place, tmp_path / "plain"), run(place, tmp_path / "headed", prepend_bos=True)
    rows = np.arange(20, dtype=np.int32)
    np.testing.assert_array_equal(plain.values(rows)[:, 0], headed.values(rows)[:, 0])  # tap 0 sees one token alone
    assert np.abs(plain.values(rows)[:, 1] - headed.values(rows)[:, 1]).max() > 1e-3


class Stop(Exception):
    pass


def test_an_interrupted_harvest_goes_on_and_makes_the_same_bytes(place, tmp_path):
    whole = run(place, tmp_path / "whole")

    def stop_late(phase, done, total):
        if phase == "donor" and done > total // 2:
            raise Stop

    with pytest.raises(Stop):
        run(place, tmp_path / "bank", progress=stop_late)
    assert not (tmp_path / "bank").exists()
    seen = []
    resumed = run(place, tmp_path / "bank", progress=lambda *call: seen.append(call))
    starts = [done for phase, done, _ in seen if phase == "donor"]
    assert starts[0] > whole.num_rows // 2, "finished chunks are not done again"
    assert contents(tmp_path / "bank") == contents(tmp_path / "whole")
    assert resumed.fingerprint == whole.fingerprint
    assert not (tmp_path / "bank.partial").exists()


def test_an_interrupted_harvest_goes_on_where_the_tokenizer_was_saved_again(place, tmp_path):
    whole = run(place, tmp_path / "whole", keep_tokenizer=False)

    def stop(phase, done, total):
        if phase == "donor" and done:
            raise Stop

    tokenizer = memgraft_tokenizer(place)
    for out, changed in (("bank", lambda: tokenizer.enable_truncation(4)), ("other", tokenizer.no_truncation)):
        with pytest.raises(Stop):
            run(place, tmp_path / out, progress=stop, keep_tokenizer=False)
        changed()
        tokenizer.save(str(tmp_path / f"{out}.json"))
        resumed = run(place, tmp_path / out, recipient_tokenizer=tmp_path / f"{out}.json", keep_tokenizer=False)
        assert resumed.fingerprint == whole.fingerprint
    assert run(place, tmp_path / "bank", recipient_tokenizer=tmp_path / "bank.json").fingerprint == whole.fingerprint
    with pytest.raises(Stop):
        run(place, tmp_path / "third", progress=stop)
    byte_bpe([tiny_text(3)], 300).save(str(tmp_path / "foreign.json"))
    with pytest.raises(FingerprintError, match="other settings"):
        run(place, tmp_path / "third", recipient_tokenizer=tmp_path / "foreign.json")


_KILLED = """
import os, signal, sys, time
from memgraft.harvesting import harvest
from memgraft.keyset import KeySet
place, out = sys.argv[1:]
def report(phase, done, total):
    if phase == "donor" and done >= 192:
        print("ready", flush=True)
        time.sleep(60)
harvest(KeySet.open(f"{place}/keys.mgk"), recipient_tokenizer=f"{place}/tokenizer.json", donor=f"{place}/donor",
        taps=(0, 2), chunk_rows=64, prefix="none", compute_dtype="float32", dtype="fp32", out=out, progress=report)
"""


@pytest.mark.slow
def test_a_killed_harvest_goes_on_and_makes_the_same_bytes(place, tmp_path):
    run(place, tmp_path / "whole")
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(
        [sys.executable, "-c", _KILLED, str(place), str(tmp_path / "bank")], stdout=subprocess.PIPE, env=environment
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "bank").exists()
    seen = []
    run(place, tmp_path / "bank", progress=lambda *call: seen.append(call))
    assert next(done for phase, done, _ in seen if phase == "donor") == 192
    assert contents(tmp_path / "bank") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    "change", [{"taps": (1, 2)}, {"batch_tokens": 7}, {"prefix": " the"}, {"prepend_bos": True}, {"dtype": "bf16"}]
)
def test_other_settings_are_refused(place, tmp_path, change):
    def stop(phase, done, total):
        if phase == "donor" and done >= 64:
            raise Stop

    with pytest.raises(Stop):
        run(place, tmp_path / "bank", progress=stop)
    with pytest.raises(FingerprintError, match="other settings"):
        run(place, tmp_path / "bank", **change)
    bank = run(place, tmp_path / "bank")
    if change == {"batch_tokens": 7}:  # how many run at a time changes no value of a bank that is there
        assert run(place, tmp_path / "bank", **change, chunk_rows=9).fingerprint == bank.fingerprint
        return
    with pytest.raises(FingerprintError, match="holds a finished bank of another harvest"):
        run(place, tmp_path / "bank", **change)


def test_a_finished_bank_is_returned_and_not_made_again(place, tmp_path):
    first = run(place, tmp_path / "bank")
    before = (tmp_path / "bank" / "bank.json").stat().st_mtime_ns
    seen = []
    again = run(place, tmp_path / "bank", progress=lambda *call: seen.append(call))
    assert again.fingerprint == first.fingerprint
    assert (tmp_path / "bank" / "bank.json").stat().st_mtime_ns == before
    assert [call for call in seen if call[0] == "donor"] == []
    with pytest.raises(ArgumentError, match="resume=True"):
        run(place, tmp_path / "bank", resume=False)


def test_a_donor_without_the_tap_names_its_blocks(place, tmp_path):
    with pytest.raises(DonorError, match="tap 4: donor donor has 3 blocks"):
        run(place, tmp_path / "bank", taps=(4,))
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_that_does_not_fit_the_keys_is_refused(place, keys, tmp_path):
    small = KeySet.from_keys([(5, 7)], counts=[3], vocab_size=260)
    with pytest.raises(TokenError, match=r"has 300 tokens, .* vocabulary of 260"):
        run(place, tmp_path / "bank", keys=small)
    strange = KeySet.from_keys([(5, 7), (5, 310)], counts=[3, 9], vocab_size=320)
    with pytest.raises(TokenError, match=r"key \(5, 310\) \(row 0\): the recipient tokenizer has no token 310"):
        run(place, tmp_path / "bank", keys=strange)
    assert list(tmp_path.iterdir()) == []


def test_another_tokenizer_than_the_corpus_had_is_refused(place, keys, tmp_path):
    mined = KeySet.from_keys([(5, 7)], counts=[3], vocab_size=300, metadata={"tokenizer": "0" * 64})
    with pytest.raises(FingerprintError, match=r"not the one that made the keys' tokens: expected the file 0{64}"):
        run(place, tmp_path / "bank", keys=mined)
    from memgraft._core import fingerprint_file

    name = fingerprint_file(str(place / "tokenizer.json"))
    mined = KeySet.from_keys([(5, 70)], counts=[3], vocab_size=300, metadata={"tokenizer": name})
    assert run(place, tmp_path / "bank", keys=mined).manifest.tokenizer["file_fingerprint"] == name


def test_the_corpus_tokenizer_saved_again_is_the_same(place, tmp_path):
    tokenizer = memgraft_tokenizer(place)
    facts = {"tokenizer": "0" * 64, "tokenizer_mapping": mapping_facts(tokenizer)}
    mined = KeySet.from_keys([(5, 70)], counts=[3], vocab_size=300, metadata=facts)
    assert len(run(place, tmp_path / "bank", keys=mined)) == 1
    facts["tokenizer_mapping"] = {**mapping_facts(tokenizer), "fingerprint": "1" * 64}
    mined = KeySet.from_keys([(5, 70)], counts=[3], vocab_size=300, metadata=facts)
    with pytest.raises(FingerprintError, match=r"expected 1{64}, found"):
        run(place, tmp_path / "other", keys=mined)


def test_nothing_left_is_an_error(place, tmp_path):
    cut = tuple(memgraft_tokenizer(place).encode("\N{SNOWMAN}").ids[:2])
    with pytest.raises(KeySetError, match=r"1 mined, dropped \{'partial_utf8': 1\}"):
        run(place, tmp_path / "bank", keys=KeySet.from_keys([cut], counts=[2], vocab_size=300))


def test_speed_reuse_and_time_are_told(place, keys, tmp_path):
    """The share of reused tokens is what a plain count of each chunk's distinct beginnings says."""
    lines = []
    bank = run(place, tmp_path / "bank", chunk_rows=100, note=lines.append)
    read = open_donor(place / "donor").tokenizer.encode_inside(
        [memgraft_tokenizer(place).decode(list(key)) for key in bank.keys]
    )
    ordered = sorted(read)
    chunks = [ordered[start : start + 100] for start in range(0, len(ordered), 100)]
    tokens = sum(map(len, ordered))
    distinct = sum(len({tuple(key[:end]) for key in chunk for end in range(1, len(key) + 1)}) for chunk in chunks)
    told = re.fullmatch(
        r"donor: ([\d,]+) of \1 keys, [\d,]+ keys/s, [\d,]+ donor tokens/s \((\d+)% of them reused\), in \d+ s",
        lines[-1],
    )
    assert told is not None, lines
    assert told.group(1) == f"{bank.num_rows:,}"
    assert int(told.group(2)) == round(100 * (1 - distinct / tokens))
    run(place, tmp_path / "alone", chunk_rows=100, share_prefixes=False, note=lines.append)
    assert "(0% of them reused)" in lines[-1]


def test_what_is_wrong_with_a_bank_is_logged(place, tmp_path, caplog):
    bank = run(place, tmp_path / "bank")
    lines = health_warnings(bank_health(bank), whole_health(bank))
    assert any("have a twin" in line for line in lines)
    assert [record.getMessage() for record in caplog.records] == [f"{bank.path}: {line}" for line in lines]


def test_a_plan_counts_without_writing(place, keys, tmp_path):
    plan = plan_harvest(
        keys, recipient_tokenizer=place / "tokenizer.json", donor=place / "donor", taps=(1, 3), dtype="bf16"
    )
    assert (plan.num_keys, plan.num_rows) == (len(keys), len(keys) - 1)
    assert plan.dropped == {"partial_utf8": 1}
    assert plan.num_bytes == plan.num_rows * 2 * 32 * 2
    assert plan.seconds > 0


def test_the_package_offers_harvest_without_importing_torch():
    code = "import sys, memgraft; assert 'torch' not in sys.modules; print(memgraft.harvest.__module__)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "memgraft.harvesting.run\n"


def test_the_bank_opens_and_verifies(place, tmp_path):
    run(place, tmp_path / "bank")
    Bank.open(tmp_path / "bank").verify()
    manifest = json.loads((tmp_path / "bank" / "bank.json").read_text())
    assert manifest["taps"] == [0, 2]


@pytest.mark.parametrize("dtype", ["fp8_e4m3", "int8"])
def test_eight_bits_from_the_harvest(place, tmp_path, dtype):
    """Within what the manifest says; the same bytes after an interruption, which does not measure again."""
    exact, whole = run(place, tmp_path / "exact"), run(place, tmp_path / "whole", dtype=dtype)
    rows = np.arange(exact.num_rows, dtype=np.int32)
    storage = whole.manifest.donor["storage"]
    difference = np.linalg.norm(whole.floats(rows) - exact.floats(rows), axis=2).sum(0)
    error = difference / np.linalg.norm(exact.floats(rows), axis=2).sum(0)
    np.testing.assert_allclose(error, storage["error"], rtol=0.2)
    assert (error < 0.05).all()
    assert max(storage["error_bf16"]) < min(storage["error"])
    if dtype == "int8":
        assert storage["clipped"] < 1e-3
        assert "sampled rows" in storage["scales"]

    def stop_late(phase, done, total):
        if phase == "donor" and done > total // 2:
            raise Stop

    with pytest.raises(Stop):
        run(place, tmp_path / "bank", dtype=dtype, progress=stop_late)
    run(place, tmp_path / "bank", dtype=dtype)
    assert contents(tmp_path / "bank") == contents(tmp_path / "whole")


def test_states_that_are_not_finite_are_listed_with_their_keys(place, tmp_path):
    donor = open_donor(place / "donor", compute_dtype="float32")
    token = int(donor.tokenizer.encode_inside(["the"])[0][0])
    donor.model.get_input_embeddings().weight[token] = float("nan")
    with pytest.raises(DonorError, match=r"not finite in float32 \(row \d+: key \(.*another compute dtype") as refused:
        run(place, tmp_path / "bank", donor=donor, chunk_rows=10_000)
    (path,) = (tmp_path / "bank.partial").glob("not-finite-*.jsonl")
    assert f"all of them in {path}" in str(refused.value)
    listed = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    kept = [key for key in KeySet.open(place / "keys.mgk") if donor_tokens(place, donor, key)]
    expected = [row for row, key in enumerate(kept) if token in donor_tokens(place, donor, key)]
    assert [entry["row"] for entry in listed] == expected
    assert [tuple(entry["key"]) for entry in listed] == [kept[row] for row in expected]
    assert len(expected) > 8


def donor_tokens(place, donor, key):
    """What the donor reads of a key; none of the one that cuts a character."""
    text = memgraft_tokenizer(place).decode(list(key))
    return [] if "\ufffd" in text else donor.tokenizer.encode_inside([text])[0]


def test_mistakes_are_told_before_the_donor_is_opened(place, tmp_path, monkeypatch):
    run(place, tmp_path / "bank")
    monkeypatch.setattr("memgraft.harvesting.setup.open_donor", lambda *_args, **_options: pytest.fail("opened"))
    for changes, message in (
        ({"taps": (1, 2)}, r"taps: expected \(1, 2\), found \(0, 2\)"),
        ({"dtype": "bf16"}, "dtype: expected 'bf16', found 'fp32'"),
        ({"dtype": "bf17"}, "expected one of bf16"),
        ({"resume": False}, "resume=True"),
        ({"rank": 2, "world_size": 2}, "rank 2"),
    ):
        with pytest.raises((ArgumentError, FingerprintError), match=message):
            run(place, tmp_path / "bank", **changes)
    for taps, message in (((4,), "tap 4: donor donor has 3 blocks"), ((2, 1), "ascending"), ((), "ascending")):
        with pytest.raises(DonorError, match=message):
            run(place, tmp_path / "other", taps=taps)
    assert not (tmp_path / "other.partial").exists()
