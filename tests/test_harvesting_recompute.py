"""Rows recomputed one key at a time: right banks are right, and each planted mistake is told from the others."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import memgraft
from memgraft.bank import Bank
from memgraft.bank.dtypes import DTYPES
from memgraft.bank.rewrite import requantise
from memgraft.cli.app import build_app
from memgraft.errors import ArgumentError
from memgraft.harvesting import harvest, open_donor, verify_rows
from memgraft.harvesting.forward import donor_values
from memgraft.harvesting.rereading import distances, rounded_alike
from memgraft.keyset import KeySet
from memgraft.tokenizer import open_tokenizer
from tiny import byte_bpe, tiny_donor, tiny_text

TAPS = (1, 3)


def slowly(*values):
    """A case that the quick suite leaves out: the same as another in another type."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recompute")
    tiny_donor(folder / "donor", num_blocks=4)
    tiny_donor(folder / "stranger", num_blocks=4, seed=2)
    tokenizer = byte_bpe([tiny_text(1)], 300)
    tokenizer.save(str(folder / "tokenizer.json"))
    byte_bpe([tiny_text(2)], 300).save(str(folder / "other.json"))
    ids = tokenizer.encode(tiny_text(1, 20)).ids
    found = dict.fromkeys(tuple(ids[start : start + order]) for order in (1, 2, 3) for start in range(len(ids) - order))
    KeySet.from_keys(list(found), counts=[2] * len(found), vocab_size=300).save(folder / "keys.mgk")
    return folder


@pytest.fixture(scope="module")
def donor(place):
    return open_donor(place / "donor", compute_dtype="float32")


def run(place, out, **changes):
    options = {"taps": TAPS, "prefix": "none", "compute_dtype": "float32", "dtype": "fp32", **changes}
    source = options.pop("donor", place / "donor")
    keys = KeySet.open(place / "keys.mgk")
    return harvest(keys, recipient_tokenizer=place / "tokenizer.json", donor=source, out=out, **options)


@pytest.fixture(scope="module")
def bank(place, donor):
    return run(place, place / "bank", donor=donor)


@pytest.fixture
def planted(bank, tmp_path, place, donor):
    """Checks a bank that holds ``values`` under the facts of the right one."""

    def check(values, dtype="fp32", given=None, **options):
        facts = bank.manifest
        made = Bank.create(
            tmp_path / "planted",
            keys=bank.keys,
            values=values,
            taps=TAPS,
            dtype=dtype,
            donor=facts.donor,
            tokenizer=facts.tokenizer,
        )
        options = {"sample": 24, "recipient_tokenizer": place / "tokenizer.json", **options}
        return verify_rows(made, donor=given or donor, **options)

    return check


def only(check):
    """The single finding."""
    assert not check.ok
    (finding,) = check.findings
    return finding


@pytest.mark.parametrize("dtype", [slowly(name) if name in ("bf16", "fp16", "fp8_e4m3") else name for name in DTYPES])
def test_right_rows_are_right_in_every_type(place, donor, tmp_path, dtype):
    made = run(place, tmp_path / "bank", dtype=dtype, donor=donor, prefix="bos")
    seen = []
    check = verify_rows(made, donor=donor, sample=70, progress=lambda *call: seen.append(call))
    assert check.ok, check.findings
    assert len(set(check.rows.tolist())) == 70
    assert check.errors.shape == (70, 2)
    assert check.num_differing == 0
    assert 0 <= check.largest_error < 1e-3, "what storage does is not counted, what the batch does is"
    assert seen == [("rows", 64, 70), ("rows", 70, 70)]


def test_what_lies_between_two_stored_numbers_may_be_either():
    # Of a row of SmolLM2-135M in bfloat16: 15.46876 is stored as 15.5, and by another processor as 15.4375.
    values = np.full((1, 1, 576), 0.5, np.float32)
    values[0, 0, 3] = 15.46876
    expected = torch.from_numpy(values).bfloat16().float().numpy()
    assert expected[0, 0, 3] == 15.5

    def found(number, place=3):
        stored = expected.copy()
        stored[0, 0, place] = number
        return float(distances(rounded_alike(stored, expected, values), expected)[0, 0])

    assert found(15.5) == found(15.4375) == 0
    # What no rounding gives stays as far away as it is.
    for number in (15.375, 15.5625, -15.5, 0.0, np.inf):
        assert found(number) == pytest.approx(abs(number - 15.5) / np.linalg.norm(expected), rel=1e-5)
    assert found(0.50390625, place=9) > 0
    with np.errstate(all="raise"):
        missing = rounded_alike(expected, np.full_like(expected, np.nan), np.full_like(expected, np.inf))
    assert (missing == expected).all()


@pytest.mark.slow
def test_a_coarse_run_is_right_within_its_rounding(place, tmp_path):
    made = run(place, tmp_path / "bank", dtype="bf16", compute_dtype="bfloat16")
    check = verify_rows(made, donor=place / "donor", sample=64)
    assert check.ok, check.findings
    assert check.compute_dtype == "bfloat16"
    exact = verify_rows(made, donor=place / "donor", sample=64, compute_dtype="float32")
    assert exact.ok, exact.findings
    assert exact.largest_error > 1e-3


@pytest.mark.parametrize(("first", "second"), [slowly("bf16", "fp8_e4m3"), ("bf16", "int8"), slowly("int8", "bf16")])
def test_requantised_rows_are_right(place, donor, tmp_path, first, second):
    made = run(place, tmp_path / "bank", dtype=first, donor=donor)
    again = requantise(made, tmp_path / "again", second)
    check = verify_rows(again, donor=donor, sample=70, recipient_tokenizer=place / "tokenizer.json")
    assert check.ok, check.findings


@pytest.mark.parametrize("dtype", ["fp32", slowly("fp8_e4m3"), "int8"])
def test_a_tap_off_by_one(place, donor, planted, tmp_path, dtype):
    deeper = run(place, tmp_path / "deeper", taps=(2, 4), donor=donor)[:]
    finding = only(planted(deeper, dtype))
    assert finding.kind == "tap"
    assert "tap 2,4 instead of 1,3" in finding.text
    assert "with taps 1,3" in finding.way_out


@pytest.mark.slow
def test_a_tap_off_by_one_behind_channels_that_outweigh_all_others(place, bank, planted, donor, monkeypatch):
    """Both taps are within rounding of each other; the neighbour fits better, row by row."""
    import memgraft.harvesting.rereading as module

    monkeypatch.setitem(module.ROUNDING, "float32", 10.0)
    finding = only(planted(run(place, bank.path.with_name("deeper"), taps=(2, 4), donor=donor)[:]))
    assert finding.kind == "tap"
    assert "tap 2,4 instead of 1,3" in finding.text


def test_another_prefix(place, donor, planted, tmp_path):
    headed = run(place, tmp_path / "headed", prefix="bos", donor=donor)[:]
    finding = only(planted(headed))
    assert finding.kind == "prefix"
    assert f"bos [{donor.bos}] instead of none []" in finding.text


@pytest.mark.parametrize("shift", [1, slowly(-2)])
def test_shifted_rows(bank, planted, shift):
    finding = only(planted(bank[np.clip(np.arange(bank.num_rows) + shift, 0, bank.num_rows - 1)]))
    assert finding.kind == "shift"
    assert f"row i holds the value of key i{shift:+d}" in finding.text


def test_prefix_and_tap_together(place, donor, planted, tmp_path):
    finding = only(planted(run(place, tmp_path / "both", prefix="bos", taps=(2, 4), donor=donor)[:]))
    assert finding.kind == "prefix"
    assert "tap 2,4 instead of 1,3" in finding.text


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda values: values * 0.25, "0.25, 0.25 times the donor's"),
        (lambda values: values / np.linalg.norm(values, axis=2, keepdims=True), "normalised, each row by itself"),
        (
            lambda values: values * np.random.default_rng(0).uniform(0.5, 2, (len(values), 2, 1)),
            "each row has a wrong scale",
        ),
        (lambda values: values * np.linspace(0.5, 2, 32), "each channel has a wrong scale"),
    ],
)
def test_another_scale(bank, planted, change, text):
    finding = only(planted(change(bank[:]).astype(np.float32)))
    assert finding.kind == "scale"
    assert text in finding.text


@pytest.mark.parametrize(("marked", "other"), [("bf16", "fp16"), slowly("fp16", "bf16")])
def test_bits_of_another_type(bank, planted, marked, other):
    stored, _ = DTYPES[other].encoder(bank[:], None)
    values = stored.view(DTYPES[marked].storage)
    usable = np.isfinite(DTYPES[marked].decoder(values)).all()
    assert usable, "a bank takes no others"
    finding = only(planted(values, marked))
    assert finding.kind == "dtype"
    assert f"{other} bits that are marked as {marked}" in finding.text


@pytest.mark.slow
def test_another_compute_type(place, planted, tmp_path):
    coarse = run(place, tmp_path / "coarse", compute_dtype="bfloat16")[:]
    finding = only(planted(coarse, given=place / "donor"))
    assert finding.kind == "compute_dtype"
    assert "ran in bfloat16, not in float32" in finding.text


def test_other_texts(bank, planted, donor, place):
    keys = [list(bank.keys.key(row)) for row in range(bank.num_rows)]
    as_they_are = donor_values(donor, TAPS, keys, max_tokens=1024).numpy()
    finding = only(planted(as_they_are))
    assert finding.kind == "tokenizer"
    assert "ids were given to the donor as they are" in finding.text
    bank_texts = open_tokenizer(place / "tokenizer.json").decode_inside(keys)
    bare = donor.tokenizer.encode_inside([text.strip() or text for text in bank_texts])
    check = verify_rows(
        Bank.create(
            bank.path.with_name("stripped"),
            keys=bank.keys,
            values=donor_values(donor, TAPS, bare, max_tokens=1024).numpy(),
            taps=TAPS,
            dtype="fp32",
            donor=bank.manifest.donor,
            tokenizer=bank.manifest.tokenizer,
        ),
        donor=donor,
        sample=24,
        recipient_tokenizer=place / "tokenizer.json",
    )
    assert check.num_differing < 24, "keys that begin inside a word are the same"
    assert only(check).kind == "tokenizer"
    assert "without the spaces around them" in only(check).text


def test_states_after_the_final_norm_and_before_the_last_token(place, bank, donor, tmp_path):
    made = run(place, tmp_path / "last", taps=(4,), donor=donor)
    texts = open_tokenizer(place / "tokenizer.json").decode_inside([list(key) for key in made.keys])
    tokens = donor.tokenizer.encode_inside(texts)
    with torch.no_grad():
        norm = donor.model.model.norm
        values = torch.stack([norm(torch.from_numpy(row)) for row in made[:]]).numpy()
    short = donor_values(donor, (4,), [ids[:-1] or ids for ids in tokens], max_tokens=1024).numpy()
    facts = {"keys": made.keys, "taps": (4,), "dtype": "fp32"}
    facts |= {"donor": made.manifest.donor, "tokenizer": made.manifest.tokenizer}
    options = {"donor": donor, "sample": 24, "recipient_tokenizer": place / "tokenizer.json"}
    normed = Bank.create(tmp_path / "normed", values=values, **facts)
    assert only(verify_rows(normed, **options)).kind == "norm"
    shorter = Bank.create(tmp_path / "short", values=short, **facts)
    assert only(verify_rows(shorter, **options)).kind == "position"


def test_rows_that_were_never_written_and_noise(bank, planted):
    values = bank[:].copy()
    values[::2] = 0
    values[1::6] += 1
    check = planted(values)
    assert [finding.kind for finding in check.findings] == ["damage", "damage"]
    assert "never written" in check.findings[0].text
    assert "nothing explains" in check.findings[1].text
    damaged = [row for row in check.rows.tolist() if row % 2 == 0 or row % 6 == 1]
    assert check.num_differing == len(damaged)


def test_another_donor(place, bank, planted, donor, tmp_path):
    theirs = run(place, tmp_path / "theirs", donor=place / "stranger")
    finding = only(planted(theirs[:]))
    assert finding.kind == "donor"
    assert "no tap, prefix, tokenizer, shift, scale or type of donor gives these values" in finding.text
    finding = only(verify_rows(bank, donor=place / "stranger", sample=20))
    assert finding.kind == "donor"
    assert f"expected weights {donor.fingerprint}" in finding.text
    assert "name the donor that the bank was harvested from: donor" in finding.way_out
    tiny_donor(tmp_path / "shallow", num_blocks=2)
    assert "has 2 blocks of width 32" in only(verify_rows(bank, donor=tmp_path / "shallow", sample=20)).text


@pytest.mark.slow
def test_the_same_weights_in_other_files_are_a_note(place, bank, tmp_path):
    tiny_donor(tmp_path / "donor", num_blocks=4)
    AutoModelForCausalLM.from_pretrained(place / "donor").save_pretrained(tmp_path / "donor", max_shard_size="20KB")
    (tmp_path / "donor" / "model.safetensors").unlink(missing_ok=True)
    check = verify_rows(bank, donor=tmp_path / "donor", sample=20)
    assert check.ok
    assert "another donor: expected weights" in check.notes[0]


@pytest.mark.slow
def test_another_tokenizer_by_its_record(place, bank, donor):
    finding = only(verify_rows(bank, donor=donor, sample=40, recipient_tokenizer=place / "other.json"))
    assert finding.kind == "tokenizer"
    assert "another recipient tokenizer: expected" in finding.text


@pytest.mark.slow
def test_rows_in_contexts(place, donor, tmp_path):
    """The windows are found again in the corpus, each is read alone, and mistakes are told apart there too."""
    tokenizer = open_tokenizer(place / "tokenizer.json")
    with memgraft.CorpusWriter(tmp_path / "corpus", vocab_size=300, eos_id=0) as writer:
        for number in (1, 2, 3):
            writer.add([*tokenizer.encode([tiny_text(number, 20)])[0], 0])
        writer.finish()
    corpus = memgraft.Corpus.open(tmp_path / "corpus.bin")
    keys = memgraft.mine(corpus, (2, 3), budget=80)
    keys.save(tmp_path / "keys.mgk")
    options = {"recipient_tokenizer": place / "tokenizer.json", "donor": donor, "prefix": "bos", "dtype": "fp32"}
    bank = harvest(keys, taps=(2,), contexts=(3, 5), corpus=corpus, out=tmp_path / "bank", **options)
    check = verify_rows(bank, donor=donor, corpus=corpus, sample=30)
    assert check.ok, check.findings
    assert check.largest_error < 1e-5
    with pytest.raises(ArgumentError, match="contexts: expected the corpus that the keys were mined from"):
        verify_rows(bank, donor=donor)
    result = CliRunner().invoke(
        build_app(),
        [
            "verify",
            *map(str, (bank.path, "--donor", place / "donor", "--corpus", tmp_path / "corpus.bin", "--sample", 9)),
        ],
    )
    assert result.exit_code == 0, result.output

    def planted(name, values):
        facts = {"donor": bank.manifest.donor, "tokenizer": bank.manifest.tokenizer, "corpus": bank.manifest.corpus}
        made = Bank.create(tmp_path / name, keys=bank.keys, values=values, taps=(2,), dtype="fp32", **facts)
        sample = {"sample": 20, "recipient_tokenizer": place / "tokenizer.json"}
        return only(verify_rows(made, donor=donor, corpus=corpus, **sample)).kind

    alone = harvest(keys, taps=(2,), out=tmp_path / "alone", **options)
    deeper = harvest(keys, taps=(3,), contexts=(3, 5), corpus=corpus, out=tmp_path / "deeper", **options)
    assert planted("as-alone", alone[:]) == "contexts"
    assert planted("as-deeper", deeper[:]) == "tap"
    assert planted("as-shifted", bank[np.minimum(np.arange(bank.num_rows) + 1, bank.num_rows - 1)]) == "shift"


def test_bad_calls(place, bank, donor, tmp_path):
    with pytest.raises(ArgumentError, match="sample: expected at least 1"):
        verify_rows(bank, donor=donor, sample=0)
    bare = run(place, tmp_path / "bare", keep_tokenizer=False, donor=donor)
    with pytest.raises(ArgumentError, match="give tokenizer=<path>"):
        verify_rows(bare, donor=donor)
    assert verify_rows(bare, donor=donor, sample=5, recipient_tokenizer=place / "tokenizer.json").ok


def test_the_verb(place, bank, tmp_path):
    def call(*arguments):
        return CliRunner().invoke(build_app(), ["verify", *map(str, arguments)])

    good = call(bank.path, "--donor", place / "donor", "--sample", 20, "--json")
    assert good.exit_code == 0, good.output
    assert '"ok": true' in good.stdout
    bad = call(bank.path, "--donor", place / "stranger", "--sample", 20)
    assert bad.exit_code == 1
    assert "donor: another donor: expected weights" in bad.stderr
    assert "name the donor that the bank was harvested from" in bad.stderr
    lost = call(bank.path, "--sample", 20)
    assert lost.exit_code == 2
    assert "--sample: expected --donor" in lost.stderr
    keys = call(place / "keys.mgk", "--donor", place / "donor")
    assert keys.exit_code == 2
    assert "expected a bank" in keys.stderr
