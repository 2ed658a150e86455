"""The probe: a planted signal ranks first, baselines against plain loops, and what is refused."""

import dataclasses
import json
import math
from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import memgraft
from memgraft.bank import Bank
from memgraft.cli.app import build_app
from memgraft.errors import ArgumentError, DonorError, FingerprintError
from memgraft.harvesting import open_donor
from memgraft.harvesting import prefix as prefix_module
from memgraft.index import NgramIndex
from memgraft.mining.origin import held_out_part
from memgraft.probing import choose_settings, fitting, probe
from memgraft.probing.fitting import Fits
from memgraft.probing.hits import Hits, Sample, draw, hits_of
from memgraft.probing.run import affordable_keys
from memgraft.probing.softmax import (
    Classes,
    Fit,
    count_losses,
    difference_interval,
    normalised,
    softmax_losses,
    unigram_losses,
)
from memgraft.tokenizer import FastCodec
from tiny import byte_bpe, tiny_donor, tiny_text

FIT = Fit(num_hits=2000, epochs=4, batch_hits=128, learning_rate=0.03, num_classes=200)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A corpus whose next token often follows from the last one; two donors, one of which cannot tell tokens apart."""
    folder = tmp_path_factory.mktemp("probe")
    tokenizer = byte_bpe([tiny_text(number) for number in range(4)], 300)
    tokenizer.save(str(folder / "tokenizer.json"))
    with memgraft.CorpusWriter(folder / "corpus", eos_id=0, vocab_size=300) as writer:
        for number in range(60):
            writer.add([*tokenizer.encode(tiny_text(number, sentences=8)).ids, 0])
        writer.finish()
    training, _ = memgraft.Corpus.open(folder / "corpus.bin").split(held_out=0.2)
    memgraft.mine(training, (1, 2, 3), budget=300, vocab_size=300).save(folder / "keys.mgk")
    tiny_donor(folder / "knows", tokenizer=tokenizer)
    blank = open_donor(tiny_donor(folder / "blank", tokenizer=tokenizer), compute_dtype="float32").model
    with torch.no_grad():
        blank.get_input_embeddings().weight.copy_(torch.ones(32).expand_as(blank.get_input_embeddings().weight))
    blank.save_pretrained(folder / "blank")
    return folder


@pytest.fixture(scope="module")
def corpus(place):
    return memgraft.Corpus.open(place / "corpus.bin")


@pytest.fixture(scope="module")
def keys(place):
    return memgraft.KeySet.open(place / "keys.mgk")


def options(place, corpus, **changes):
    given = {
        "recipient_tokenizer": place / "tokenizer.json",
        "corpus": corpus,
        "donors": [place / "blank", place / "knows"],
        "taps": (1, 3),
        "prefixes": ["none"],
        "compute_dtype": "float32",
        "num_keys": 200,
        "seeds": 2,
        "fit": FIT,
    }
    return {**given, **changes}


@pytest.fixture(scope="module")
def result(place, corpus, keys):
    return probe(keys, **options(place, corpus))


def test_a_planted_signal_ranks_first(result):
    knows, blank = ([one for one in result.candidates if one.settings["donor"] == name] for name in ("knows", "blank"))
    assert {one.settings["donor"] for one in result.candidates[:2]} == {"knows"}
    assert min(one.loss for one in blank) - max(one.loss for one in knows) > 0.5
    assert all(one.low > 0 for one in blank), "clearly worse"
    assert result.candidates[0].worse == result.candidates[0].low == 0
    by_name = {one.name.split()[0].rstrip(":"): one.loss for one in result.baselines}
    assert set(by_name) == {"counts", "input", "shuffled", "frequencies"}
    assert result.candidates[0].loss < by_name["shuffled"] - 0.2
    assert abs(min(one.loss for one in blank) - by_name["frequencies"]) < 0.2, "values that are all alike know no more"


def test_the_choice_and_its_cost(result):
    assert result.chosen.settings["donor"] == "knows"
    assert all(one.keys_per_second > 0 and one.bytes_per_row == 64 for one in result.candidates)
    assert all(len(one.losses) == 2 for one in result.candidates)
    facts = json.loads(json.dumps(result.facts()))
    assert facts["chosen"] == result.chosen.name
    assert facts["sample"]["num_keys"] == 200


def test_the_same_arguments_give_the_same_losses(place, corpus, keys, result):
    (before,) = [one for one in result.candidates if one.settings["donor"] == "knows" and one.settings["tap"] == 3]
    few = options(place, corpus, donors=[place / "knows"], taps=(3,))
    assert probe(keys, **few).candidates[0].losses == before.losses, "whatever else is measured beside it"
    assert probe(keys, **{**few, "seed": 5, "seeds": 1}).candidates[0].losses[0] != before.losses[0]


@pytest.mark.slow
def test_every_kind_of_candidate_is_measured(place, corpus, keys):
    found = probe(
        keys,
        **options(
            place,
            corpus,
            donors=[place / "knows"],
            taps=(3,),
            prefixes=["none", "bos", "\n", " the"],
            contexts=[(1, 0), (2, 6)],
            num_keys=60,
            dtypes=["bf16", "int8"],
            normalisations=["rms", "none"],
            recipient=place / "blank",
            seeds=1,
        ),
    )
    assert len(found.candidates) == len({one.name for one in found.candidates}) == 32
    spread = [one.loss for one in found.candidates if one.settings["prefix_name"] == "none"]
    assert max(spread) < found.baselines[-1].loss
    (own,) = [one for one in found.baselines if one.name.startswith("the recipient's")]
    assert own.loss > max(one.loss for one in found.candidates), "embeddings that are all alike"


def slow_hits(index, corpus):
    starts = corpus.document_starts.tolist()
    found = []
    for document, (first, stop) in enumerate(pairwise(starts)):
        tokens = corpus.tokens(first, stop).tolist()
        for place in range(len(tokens) - 1):
            rows = [index.find(tokens[begin : place + 1]) for begin in range(max(0, place - 2), place + 1)]
            if matches := [row for row in rows if row is not None]:
                found.append((matches[0], tokens[place + 1], document))
    return found


@pytest.mark.parametrize("block_tokens", [37, 1 << 20])
def test_hits_are_those_of_a_plain_loop(corpus, keys, block_tokens):
    index = NgramIndex.build(keys)
    _, held_out = corpus.split(held_out=0.2)
    hits = hits_of(index, held_out, block_tokens=block_tokens)
    found = list(zip(hits.rows.tolist(), hits.targets.tolist(), hits.documents.tolist(), strict=True))
    assert found == slow_hits(index, held_out)


def test_a_large_corpus_is_looked_up_in_parts(corpus, keys):
    index = NgramIndex.build(keys)
    whole, part = hits_of(index, corpus), hits_of(index, corpus, block_tokens=100, most_tokens=1000)
    assert len(part) < 1010 < len(whole)
    assert set(map(tuple, zip(part.rows, part.targets, part.documents, strict=True))) <= set(
        map(tuple, zip(whole.rows, whole.targets, whole.documents, strict=True))
    )
    assert {part.documents.min(), part.documents.max()} == {whole.documents.min(), whole.documents.max()}


def test_the_exam_is_a_sample_of_all_hits(corpus, keys):
    index = NgramIndex.build(keys)
    training, held_out = (hits_of(index, part) for part in corpus.split(held_out=0.2))
    sample = draw(keys, training, held_out, num_keys=120, num_exam=10**6, seed=1)
    assert len(sample.keys) == 120
    assert 60 <= len(np.unique(sample.exam.rows)) <= 80, "two thirds of the keys are the exam's"
    originals = np.array([index.find(key) for key in sample.keys])
    pairs = Counter(zip(held_out.rows.tolist(), held_out.targets.tolist(), strict=True))
    drawn = Counter(zip(originals[sample.exam.rows].tolist(), sample.exam.targets.tolist(), strict=True))
    assert all(drawn[pair] <= pairs[pair] for pair in drawn)
    assert len(sample.training) == np.isin(training.rows, originals).sum(), "all training hits on the keys are there"


def random_hits(number, num_rows, vocab, seed):
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, num_rows, number)
    targets = np.where(rng.random(number) < 0.7, (rows * 7) % vocab, rng.integers(0, vocab, number))
    return Hits(rows=rows, targets=targets, documents=np.sort(rng.integers(0, 9, number)))


def test_counts_are_those_of_a_plain_loop():
    training, exam = random_hits(300, 12, 20, 0), random_hits(80, 12, 20, 1)
    classes = Classes.of(training.targets, 20, 8)
    found, strength = count_losses(training, exam, classes)
    counted = defaultdict(Counter)
    for row, target in zip(training.rows.tolist(), training.targets.tolist(), strict=True):
        counted[row][classes.of_token[target]] += 1

    def probability(row, target, strength, less=0):
        one = classes.of_token[target]
        prior = math.exp(classes.log_prior[one])
        return (counted[row][one] - less + strength * prior) / (counted[row].total() - less + strength)

    def left_out(strength):
        pairs = zip(training.rows.tolist(), training.targets.tolist(), strict=True)
        return sum(math.log(probability(row, target, strength, less=1)) for row, target in pairs)

    assert strength == max((2.0**power for power in range(11)), key=left_out)
    for place, (row, target) in enumerate(zip(exam.rows.tolist(), exam.targets.tolist(), strict=True)):
        expected = probability(row, target, strength) * math.exp(classes.log_inside[target])
        assert found[place] == pytest.approx(-math.log(expected), rel=1e-5)


def test_classes_are_a_distribution():
    targets = random_hits(300, 12, 20, 0).targets
    for number in (3, 20, 50):
        classes = Classes.of(targets, 20, number)
        every = Hits(rows=np.zeros(20, np.int64), targets=np.arange(20), documents=np.zeros(20, np.int64))
        assert np.exp(-unigram_losses(every, classes)).sum() == pytest.approx(1, rel=1e-5)


def test_the_softmax_learns_what_is_there_and_no_more():
    training, exam = random_hits(4000, 40, 30, 0), random_hits(1500, 40, 30, 1)
    classes = Classes.of(training.targets, 30, 30)
    rng = np.random.default_rng(0)
    telling = np.eye(40, dtype=np.float32) + 0.01 * rng.standard_normal((40, 40)).astype(np.float32)
    telling[:, 3] *= 500  # an outlier channel hides nothing
    fit = Fit(num_hits=4000, epochs=8, batch_hits=128, learning_rate=0.05)
    known = softmax_losses(normalised(telling, "none"), training, exam, classes, fit, seed=0).mean()
    alike = softmax_losses(np.ones((40, 8), np.float32), training, exam, classes, fit, seed=0)
    best = -(0.7 + 0.3 / 30) * math.log(0.7 + 0.3 / 30) - 29 * 0.01 * math.log(0.01)
    assert best - 0.15 < known < best + 0.35
    np.testing.assert_allclose(alike.mean(), unigram_losses(exam, classes).mean(), atol=0.1)
    low, high = difference_interval(np.full(1500, 2.0, np.float32), np.full(1500, 1.5, np.float32), exam.documents)
    assert low == pytest.approx(0.5)
    assert high == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"taps": (1, 9)}, DonorError, "tap 9: donor blank has 3 blocks"),
        ({"donors": []}, ArgumentError, "donors, prefixes, contexts: expected at least one"),
        ({"seeds": 0}, ArgumentError, "expected at least one dtype, normalisation and seed"),
        ({"normalisations": ["l3"]}, ArgumentError, "normalisations: expected rms, none, found 'l3'"),
        ({"contexts": [(0, 3)]}, ArgumentError, "contexts: expected occurrences of 1"),
        ({"donors": "donor"}, ArgumentError, r"donors: expected a list, got 'donor'; for one give \['donor'\]"),
        ({"prefixes": "none"}, ArgumentError, "prefixes: expected a list, got 'none'"),
        ({"dtypes": "bf16"}, ArgumentError, "dtypes: expected a list, got 'bf16'"),
        ({"normalisations": "rms"}, ArgumentError, "normalisations: expected a list, got 'rms'"),
    ],
)
def test_what_is_refused(place, corpus, keys, changes, error, message):
    with pytest.raises(error, match=message):
        probe(keys, **options(place, corpus, **changes))


def test_text_that_was_mined_is_no_exam(place, corpus, keys):
    training, held_out = corpus.split(held_out=0.2)
    with pytest.raises(FingerprintError, match="expected documents that the keys were not mined from"):
        probe(keys, **options(place, training, held_out=training))
    with pytest.raises(ArgumentError, match="found the mined part alone; give the whole, or held_out="):
        probe(keys, **options(place, training))
    with pytest.raises(FingerprintError, match="expected the corpus"):
        probe(keys, **options(place, held_out, held_out=held_out))
    with pytest.raises(FingerprintError, match="; name that corpus, or the whole that it was split off"):
        held_out_part(keys, held_out, None)


def invoke(*arguments):
    return CliRunner().invoke(build_app(), [str(argument) for argument in arguments])


def test_the_verb(place, tmp_path):
    asked = ["probe", place / "keys.mgk", "--tokenizer", place / "tokenizer.json", "--corpus", place / "corpus.bin"]
    asked += ["--donor", place / "knows", "--taps", "1,3", "--prefix", "none", "--contexts", "1:0,2:4", "--seeds", 1]
    made = invoke(*asked, "--sample", 60, "--plot", tmp_path / "probe.svg")
    assert made.exit_code == 0, made.stderr
    assert "knows tap 3, mean of 2 contexts of 4" in made.stdout
    assert "chosen: knows tap" in made.stderr
    drawn = (tmp_path / "probe.svg").read_text()
    assert drawn.count("knows tap") >= 4
    shown = json.loads(invoke(*asked, "--minutes", "0.02", "--json").stdout)
    assert len(shown["candidates"]) == 4
    for wrong, message in ((["--plot", tmp_path / "probe.png"], "ends with .svg"), (["--taps", "x"], "--taps x")):
        refused = invoke(*asked, *wrong)
        assert refused.exit_code == 2
        assert message in refused.stderr


def test_time_that_is_too_short_for_any_probe_is_told():
    told = []
    assert affordable_keys(10, 0.1, 10_000, told.append) == 3000
    assert affordable_keys(0.01, 1e-3, 256, told.append) == 400
    assert told == []
    assert affordable_keys(0.1, 0.1, 10_000, told.append) == 400
    assert told[0].startswith(
        "0.1 minutes are enough for 30 keys, and 400 are the least: reading them takes about 0.7 minutes"
    )


def test_fits_take_fewer_hits_where_time_is_short(monkeypatch):
    clock, used = [0.0], []

    def losses(values, training, exam, classes, fit, *, seed, device):
        used.append((seed, fit.num_hits))
        clock[0] += min(fit.num_hits, len(training)) / 10_000
        return np.zeros(1, np.float32)

    monkeypatch.setattr(fitting, "softmax_losses", losses)
    monkeypatch.setattr(fitting.time, "monotonic", lambda: clock[0])

    def fitted(hits, deadline):
        """Seeds, hits of a fit, what was said, and the fits made when the timed values are asked for once more."""
        targets = np.zeros(hits, np.int64)
        training = Hits(rows=targets, targets=targets, documents=targets)
        fits = Fits(Sample(keys=None, training=training, exam=training), 4, Fit(num_hits=60_000), 7, "cpu")
        told, values = [], np.zeros((1, 1), np.float32)
        clock[0] = 0.0
        used.clear()
        seeds = fits.affordable(values, 3, 10, deadline, told.append)
        fits.losses(values, 7)
        return seeds, fits.num_hits, told, used[:]

    # A fit of 60,000 hits takes 6 s, ten of them 60.
    assert fitted(80_000, 200.0) == (3, 60_000, [], [(7, 60_000)])
    assert fitted(80_000, 70.0) == (1, 60_000, [], [(7, 60_000)])
    assert fitted(80_000, 36.0) == (
        1,
        30_000,
        ["fitted on 30,000 of 60,000 training hits, for the time that is left"],
        [(7, 60_000), (7, 30_000)],
    )
    seeds, hits, told, _ = fitted(80_000, 1.0)
    assert (seeds, hits, len(told)) == (1, 10_000, 2)
    assert told[1].startswith("10 fits take about 0.2 minutes")
    seeds, hits, told, made = fitted(9_000, 1.0)
    assert (seeds, hits, len(told), made) == (1, 9_000, 1, [(7, 60_000)])


def test_what_passes_have_in_common_is_found_out_once(place, corpus, keys, monkeypatch):
    opened, measured = [], []
    fast, measure = FastCodec.__init__, prefix_module._measured
    monkeypatch.setattr(FastCodec, "__init__", lambda *given: (opened.append(1), fast(*given))[1])
    monkeypatch.setattr(prefix_module, "_measured", lambda *given: (measured.append(1), measure(*given))[1])
    donor = open_donor(place / "knows", compute_dtype="float32")
    opened.clear()
    given = {"recipient_tokenizer": place / "tokenizer.json", "corpus": corpus, "donors": [donor], "taps": (1, 2)}
    fits, fit = [], fitting.softmax_losses
    monkeypatch.setattr(fitting, "softmax_losses", lambda *given, **named: (fits.append(1), fit(*given, **named))[1])
    found = probe(keys, **given, prefixes=("auto", "none"), contexts=(None, (1, 2)), minutes=0.01, seeds=1, fit=FIT)
    assert len(found.candidates) in (4, 8)  # "none" may be what "auto" stands for
    assert (len(opened), len(measured)) == (1, 1)
    # Shuffled rows and embeddings are fitted beside the candidates; the one that was timed is not fitted again.
    assert len(fits) == len(found.candidates) + 2


def test_prefixes_of_another_name_are_read_once_and_a_missing_bos_is_left_out(place, corpus, keys):
    donor = open_donor(place / "knows", compute_dtype="float32")
    newline = donor.tokenizer.encode(["\n"])[0]
    told = []
    asked = {"num_keys": 40, "seeds": 1, "fit": FIT, "taps": (2,), "note": told.append}
    given = {"recipient_tokenizer": place / "tokenizer.json", "corpus": corpus, **asked}
    headless = dataclasses.replace(donor, bos=None)
    found = probe(keys, donors=[headless], prefixes=["none", None, "bos", "\n", newline], **given)
    assert [sorted(one.settings["prefix"]) for one in found.candidates].count(newline) == 1
    assert len(found.candidates) == 2
    assert any("left out: prefix bos: the tokenizer of donor knows has no BOS token" in line for line in told)
    with pytest.raises(ArgumentError, match="has no BOS token"):
        probe(keys, donors=[headless], prefixes=["bos"], **given)


def test_contexts_beyond_the_donors_positions_are_left_out(place, corpus, keys):
    donor = open_donor(place / "knows", compute_dtype="float32")
    donor.model.config.max_position_embeddings = 12
    told = []
    given = options(place, corpus, donors=[donor], num_keys=None, seeds=1, taps=(2,), minutes=0.01, note=told.append)
    found = probe(keys, contexts=[None, (1, 30)], **given)
    assert [one.settings["contexts"] for one in found.candidates] == [None]
    assert [line.split(":")[:2] for line in told if line.startswith("left out")] == [["left out", " contexts"]]
    with pytest.raises(DonorError, match="is longer than the 12 positions of donor knows"):
        probe(keys, contexts=[(1, 30)], **given)


def test_a_corpus_without_a_header_is_read_by_its_type(place, tmp_path, corpus):
    raw = tmp_path / "corpus.raw"
    raw.write_bytes(corpus.tokens(0, corpus.num_tokens).astype("<u4").tobytes())
    how = ["--format", "raw", "--eos-id", 0, "--tokenizer", place / "tokenizer.json", "--donor", place / "knows"]
    asked = [place / "keys.mgk", "--corpus", raw, *how, "--prefix", "none", "--taps", 2]
    bank = tmp_path / "bank"
    made = invoke("harvest", *asked, "--contexts", "1,4", "--dtype", "uint32", "--out", bank)
    assert made.exit_code == 0, made.stderr
    assert Bank.open(bank).dtype == "bf16"
    assert f"warning: {bank}: " in made.stderr, "the health of the bank"
    assert "have a twin" in made.stderr
    probed = invoke("probe", *asked, "--dtype", "uint32", "--sample", 40, "--seeds", 1)
    assert probed.exit_code == 0, probed.stderr
    bare = ["harvest", place / "keys.mgk", *how[4:], "--prefix", "none", "--taps", 2]
    old = invoke(*bare, "--dtype", "fp8", "--out", tmp_path / "8")
    assert old.exit_code == 0, old.stderr
    assert Bank.open(tmp_path / "8").dtype == "fp8_e4m3", "without a corpus it is what it was"
    wrong = invoke(*bare, "--dtype", "uint32", "--out", tmp_path / "32")
    assert wrong.exit_code == 2


def test_harvest_auto_takes_what_the_probe_chose(place, tmp_path, corpus, keys):
    out = tmp_path / "bank"
    asked = ["harvest", place / "keys.mgk", "--tokenizer", place / "tokenizer.json", "--corpus", place / "corpus.bin"]
    asked += ["--donor", place / "knows", "--auto", "--minutes", "0.05", "--out", out, "--json"]
    made = invoke(*asked)
    assert made.exit_code == 0, made.stderr
    bank = Bank.open(out)
    recorded = bank.manifest.donor["probe"]
    assert json.loads(made.stdout)["chosen_by_probe"] == recorded["chosen"]
    assert recorded["chosen"] in recorded["table"]
    for read in ("nothing before it", "'\\n' before it", "mean of 2 contexts of 12"):
        assert any(read in name for name in recorded["table"]), recorded["table"]
    assert bank.taps == (recorded["settings"]["tap"],)
    again = invoke(*asked)
    assert again.exit_code == 0, again.stderr
    assert Bank.open(out).fingerprint == bank.fingerprint
    chosen = choose_settings(keys, out, donors=["nowhere"], recipient_tokenizer=None, corpus=corpus)
    assert chosen.taps == bank.taps
    refused = invoke(*asked, "--dry-run")
    assert refused.exit_code == 2
    assert "--auto: expected --corpus" in refused.stderr
