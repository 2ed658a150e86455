"""Harvests in contexts: the places chosen and the means read there, against plain loops; what is refused."""

import random
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import memgraft
from bank_cases import child_environment
from memgraft.bank import Bank
from memgraft.bank.make import subtract, truncate
from memgraft.errors import ArgumentError, DonorError, FingerprintError, KeySetError
from memgraft.harvesting import Contexts, harvest, open_donor, plan_harvest, verify_rows
from memgraft.harvesting.extend import harvest_like, mine_lacking
from memgraft.harvesting.occurrences import find_occurrences
from memgraft.keyset import KeySet
from tiny import byte_bpe, sentencepiece_bpe, tiny_donor, tiny_text

EOS = "<|endoftext|>"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Documents with signs of several bytes, their tokens, keys of the training part, two donors."""
    folder = tmp_path_factory.mktemp("contexts")
    texts = [tiny_text(number, sentences=6) + "☃☃ naïve" * (number % 2) for number in range(12)]
    tokenizer = byte_bpe(texts[:3], 290)
    tokenizer.save(str(folder / "tokenizer.json"))
    with memgraft.CorpusWriter(folder / "corpus", eos_id=0, vocab_size=290) as writer:
        for text in texts:
            writer.add([*tokenizer.encode(text).ids, 0])
        writer.finish()
    corpus = memgraft.Corpus.open(folder / "corpus.bin")
    memgraft.mine(corpus.split(held_out=0.25)[0], (2, 3, 4), budget=150).save(folder / "keys.mgk")
    tiny_donor(folder / "donor")
    tiny_donor(folder / "spaced", tokenizer=sentencepiece_bpe(texts))
    return folder


@pytest.fixture(scope="module")
def corpus(place):
    return memgraft.Corpus.open(place / "corpus.bin")


@pytest.fixture(scope="module")
def keys(place):
    return KeySet.open(place / "keys.mgk")


@pytest.fixture(scope="module")
def bank(place, corpus):
    return run(place, place / "bank", corpus=corpus)


def run(place, out, **changes):
    options = {
        "taps": (1, 3),
        "contexts": (2, 6),
        "prefix": "bos",
        "compute_dtype": "float32",
        "dtype": "fp32",
        **changes,
    }
    keys = options.pop("keys", None) or KeySet.open(place / "keys.mgk")
    donor = options.pop("donor", place / "donor")
    return harvest(keys, recipient_tokenizer=place / "tokenizer.json", donor=donor, out=out, **options)


def number_of(position, seed):
    """SplitMix64, by Python's own integers."""
    mixed = (position + (seed + 1) * 0x9E3779B97F4A7C15) % 2**64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ mixed >> shift) * factor % 2**64
    return (mixed ^ mixed >> 31) >> 1


def slow_places(keys, corpus, k, seed):
    """For each key its k places of smallest number, found by walking through every document."""
    starts = corpus.document_starts.tolist()
    found = {key: [] for key in keys}
    for first, stop in pairwise(starts):
        tokens = corpus.tokens(first, stop).tolist()
        for end in range(len(tokens)):
            for order in range(1, end + 2):
                key = tuple(tokens[end + 1 - order : end + 1])
                if key in found:
                    found[key].append(first + end)
    return [sorted(found[key], key=lambda end: number_of(end, seed))[:k] for key in keys]


def slow_value(place, donor, corpus, ends, order, shortest, left, head, taps):
    """The mean over one forward a window; text and tokens by the tokenizers themselves."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(place / "tokenizer.json"))
    states = []
    starts = corpus.document_starts.tolist()
    for end in ends:
        document = max(start for start in starts if start <= end)
        first = max(document, end + 1 - max(order, left + shortest))
        text = tokenizer.decode(corpus.tokens(first, end + 1).tolist()).lstrip("\ufffd")
        ids = [*head, *donor.tokenizer.encode_inside([text])[0]]
        with torch.no_grad():
            hidden = donor.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        # The last of them is behind the final norm.
        states.append(torch.stack([before_norm(donor, ids, tap, hidden) for tap in taps]))
    return torch.stack(states).mean(0).numpy()


def before_norm(donor, ids, tap, hidden):
    if tap < donor.num_blocks:
        return hidden[tap][0, -1]
    seen = []
    handle = donor.model.model.norm.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    with torch.no_grad():
        donor.model(torch.tensor([ids]))
    handle.remove()
    return seen[0][0, -1]


@pytest.mark.parametrize(("name", "k", "left"), [("donor", 2, 6), ("spaced", 3, 1), ("donor", 40, 300)])
def test_a_value_is_the_mean_over_windows_read_one_by_one(place, corpus, keys, tmp_path, name, k, left):
    """Another tokenizer in the donor; windows that begin inside a character, or at the document's start."""
    if left == 300:
        keys = keys.select(np.arange(0, len(keys), 9))
    donor = open_donor(place / name, compute_dtype="float32")
    options = {} if left < 300 else {"prefix": "none"}
    bank = run(place, tmp_path / "bank", keys=keys, donor=donor, corpus=corpus, contexts=(k, left), **options)
    training, _ = corpus.split(held_out=0.25)
    chosen = slow_places(list(bank.keys), training, k, 0)
    assert {len(places) for places in chosen} > {k} or k < 40, "some keys occur less often than k times"
    head = bank.manifest.donor["prefix"]
    for row in range(0, bank.num_rows, 11):
        expected = slow_value(place, donor, training, chosen[row], len(bank.keys.key(row)), 2, left, head, (1, 3))
        found = bank.values(np.array([row], np.int32))[0]
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(2, 60))
def test_places_are_those_of_smallest_number(tmp_path_factory, seed, k, block_tokens):
    random_numbers = random.Random(seed)
    documents = [[random_numbers.randrange(1, 4) for _ in range(random_numbers.randint(0, 30))] for _ in range(6)]
    folder = tmp_path_factory.mktemp("places")
    with memgraft.CorpusWriter(folder / "corpus", vocab_size=8) as writer:
        for document in [*documents, [1, 2, 3]]:
            writer.add(document)
        writer.finish()
    corpus = memgraft.Corpus.open(folder / "corpus.bin")
    listed = {tuple(random_numbers.randrange(1, 4) for _ in range(random_numbers.randint(1, 4))) for _ in range(12)}
    keys = KeySet.from_keys([*listed - {(1, 2, 3)}, (1, 2, 3)], vocab_size=8)
    found = find_occurrences(keys, corpus, Contexts(occurrences=k, left=1, seed=seed), block_tokens=block_tokens)
    expected = slow_places(list(keys), corpus, k, seed)
    assert [[end for end in row if end >= 0] for row in found.tolist()] == expected


def test_the_bank_says_what_was_read(place, bank, corpus):
    donor = bank.manifest.donor
    assert donor["contexts"] == {"occurrences": 2, "left": 6}
    training, _ = corpus.split(held_out=0.25)
    assert donor["windows"] == {"seed": 0, "corpus": training.fingerprint}
    assert donor["num_without_occurrence"] == 0
    assert donor["num_windows"] < donor["num_occurrences"] <= 2 * bank.num_rows, "keys that end together share windows"
    assert "num_same_donor_tokens" not in donor
    bank.verify()


def test_contexts_are_of_the_value_space(place, bank, corpus, tmp_path):
    alone = run(place, tmp_path / "alone", contexts=None)
    assert alone.manifest.donor["contexts"] is None
    longer = run(place, tmp_path / "longer", contexts=(2, 5), corpus=corpus)
    again = run(place, tmp_path / "again", contexts=Contexts(occurrences=2, left=6, seed=4), corpus=corpus)
    assert len({alone.manifest.space, longer.manifest.space, bank.manifest.space}) == 3
    assert again.manifest.space == bank.manifest.space, "another sample of the same kind"
    assert again.manifest.fingerprint != bank.manifest.fingerprint
    rows = np.arange(bank.num_rows, dtype=np.int32)
    assert np.abs(again.values(rows) - bank.values(rows)).max() > 1e-3


def test_no_context_is_the_key_alone(place, corpus, tmp_path):
    alone, nothing = run(place, tmp_path / "alone", contexts=None), run(place, tmp_path / "none", contexts=(1, 0))
    assert alone.fingerprint == nothing.fingerprint


class Stop(Exception):
    pass


def test_chunks_ranks_and_interruptions_change_nothing(place, bank, corpus, tmp_path):
    def contents(folder):
        return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}

    whole = run(place, tmp_path / "whole", corpus=corpus, chunk_rows=64)

    def stop_late(phase, done, total):
        if phase == "donor" and done > total // 3:
            raise Stop

    with pytest.raises(Stop):
        run(place, tmp_path / "bank", corpus=corpus, chunk_rows=64, progress=stop_late)
    phases = []
    resumed = run(
        place,
        tmp_path / "bank",
        corpus=corpus,
        chunk_rows=64,
        rank=1,
        world_size=3,
        progress=lambda *call: phases.append(call),
    )
    assert not any(phase == "occurrences" for phase, *_ in phases), "the corpus is searched once"
    assert contents(tmp_path / "bank") == contents(tmp_path / "whole")
    assert run(place, tmp_path / "bank", corpus=corpus, chunk_rows=64).fingerprint == resumed.fingerprint
    rows = np.arange(bank.num_rows, dtype=np.int32)
    np.testing.assert_allclose(whole.values(rows), bank.values(rows), rtol=1e-4, atol=1e-5)
    with pytest.raises(FingerprintError, match=r"donor contexts: expected .*'left': 5"):
        run(place, tmp_path / "bank", corpus=corpus, chunk_rows=64, contexts=(2, 5))
    with pytest.raises(FingerprintError, match="donor contexts: expected None"):
        run(place, tmp_path / "bank", chunk_rows=64, contexts=None)
    with pytest.raises(Stop):
        run(place, tmp_path / "half", corpus=corpus, chunk_rows=64, progress=stop_late)
    with pytest.raises(FingerprintError, match=r"donor\.contexts\.left: 6 there, 5 now"):
        run(place, tmp_path / "half", corpus=corpus, chunk_rows=64, contexts=(2, 5))


def test_windows_are_of_the_mined_part(place, bank, corpus, keys, tmp_path):
    training, held_out = corpus.split(held_out=0.25)
    assert run(place, tmp_path / "part", corpus=training).fingerprint == bank.fingerprint
    with pytest.raises(FingerprintError, match=r"expected the corpus .* that the keys were mined from"):
        run(place, tmp_path / "bank", corpus=held_out)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"corpus": None}, ArgumentError, "contexts: expected the corpus that the keys were mined from, got none"),
        ({"contexts": None}, ArgumentError, "corpus: expected with contexts alone"),
        ({"contexts": (0, 4)}, ArgumentError, "contexts: expected occurrences of 1 to"),
        ({"contexts": (2, -1)}, ArgumentError, "contexts: expected left of 0 to"),
        ({"contexts": (2, 4, 6)}, ArgumentError, r"contexts: expected two whole numbers \(k, L\)"),
        ({"contexts": (1.5, 4)}, ArgumentError, r"contexts: expected two whole numbers \(k, L\)"),
    ],
)
def test_what_is_refused(place, corpus, tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        run(place, tmp_path / "bank", **{"corpus": corpus, **changes})
    assert not (tmp_path / "bank").exists()


def test_windows_longer_than_the_donors_positions(place, corpus, tmp_path):
    donor = open_donor(place / "donor", compute_dtype="float32")
    donor.model.config.max_position_embeddings = 40
    message = r"contexts: a window of \d+ tokens, .* longer than the 40 positions of donor donor; take less than 90"
    with pytest.raises(DonorError, match=message):
        run(place, tmp_path / "bank", corpus=corpus, donor=donor, contexts=(1, 90))
    assert run(place, tmp_path / "bank", corpus=corpus, donor=donor, contexts=(1, 9)).num_rows > 100


def test_keys_that_do_not_occur_are_read_alone(place, corpus, tmp_path):
    """A key set that says nothing of its corpus, with a key from elsewhere."""
    listed = [tuple(corpus.tokens(10, 12).tolist()), (70, 71, 72)]
    keys = KeySet.from_keys(listed, vocab_size=290)
    bank = run(place, tmp_path / "bank", keys=keys, corpus=corpus)
    alone = run(place, tmp_path / "alone", keys=keys, contexts=None)
    assert bank.manifest.donor["num_without_occurrence"] == 1
    row = bank.index.find(listed[1])
    same = np.abs(bank.values(np.arange(2, dtype=np.int32)) - alone.values(np.arange(2, dtype=np.int32))).max(
        axis=(1, 2)
    )
    assert same[row] < 1e-5 < 1e-2 < same[1 - row]
    with pytest.raises(KeySetError, match="no key occurs in it"):
        run(place, tmp_path / "none", keys=keys.select(np.array([bank.keys[row] == listed[1] and row])), corpus=corpus)


def test_an_overlay_is_read_as_its_base(place, bank, tmp_path):
    texts = [tiny_text(300 + number, sentences=5) for number in range(3)]
    (tmp_path / "new").mkdir()
    for number, text in enumerate(texts):
        (tmp_path / "new" / f"{number}.txt").write_text(text)
    memgraft.tokenize_folder(tmp_path / "new", place / "tokenizer.json", tmp_path / "tokens", eos=EOS)
    corpus = memgraft.Corpus.open(tmp_path / "tokens.bin")
    lacking = mine_lacking(bank, corpus, 60)
    options = {"recipient_tokenizer": place / "tokenizer.json", "donor": place / "donor", "out": tmp_path / "overlay"}
    with pytest.raises(ArgumentError, match="contexts: expected the corpus"):
        harvest_like(bank, lacking.keys, **options)
    overlay = harvest_like(bank, lacking.keys, corpus=corpus, **options)
    assert overlay.manifest.space == bank.manifest.space
    assert Bank.open([bank.path, overlay.path]).num_rows == bank.num_rows + overlay.num_rows


def test_windows_stay_the_same_when_the_shortest_keys_go(place, corpus, keys, tmp_path):
    """A bank says for which shortest keys its windows were cut, whichever keys are left."""
    counts = [9 - len(key) for key in keys]  # the longest keys are the rarest, and the first to go
    ranked = KeySet.from_keys(list(keys), counts=counts, vocab_size=290, metadata=keys.metadata)
    whole = run(place, tmp_path / "whole", keys=ranked, corpus=corpus)
    assert whole.manifest.donor["shortest_key"] == 2
    short = truncate(whole.path, whole.keys.num_keys_by_order[2], tmp_path / "short")
    long = subtract(whole.path, short.path, tmp_path / "long")
    assert short.keys.orders == (2,)
    assert 2 not in long.keys.orders
    for cut in (short, long):
        check = verify_rows(cut, donor=place / "donor", sample=20, corpus=corpus)
        assert check.ok, check.findings
        assert check.largest_error < 1e-5
    listed = [(70, 71, 72), *[key for key in keys if len(key) == 4][:9]]
    overlay = harvest_like(
        long,
        KeySet.from_keys(listed, vocab_size=290, metadata=keys.metadata),
        corpus=corpus,
        recipient_tokenizer=place / "tokenizer.json",
        donor=place / "donor",
        out=tmp_path / "overlay",
    )
    assert overlay.manifest.donor["shortest_key"] == 2, "and an overlay's rows are read in the same windows"
    for row in range(overlay.num_rows):
        if (there := long.index.find(overlay.keys.key(row))) is not None:
            np.testing.assert_allclose(overlay.floats([row]), long.floats([there]), atol=1e-5)


CHILD = """
import sys
import torch
torch.set_num_threads(int(sys.argv[4]))
from pathlib import Path
import memgraft
import test_harvesting_contexts as this
place, out, rank = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
corpus = memgraft.Corpus.open(place / "corpus.bin")
print(this.run(place, out, corpus=corpus, chunk_rows=16, rank=rank, world_size=2).fingerprint)
"""


@pytest.mark.slow
def test_two_live_ranks(place, corpus, tmp_path):
    whole = run(place, tmp_path / "whole", corpus=corpus, chunk_rows=16)
    here = Path(__file__).parent
    threads = str(torch.get_num_threads())
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, str(place), str(tmp_path / "bank"), str(rank), threads],
            stdout=subprocess.PIPE,
            text=True,
            env=child_environment(here, here.parent / "tests"),
        )
        for rank in range(2)
    ]
    for rank in ranks:
        output, _ = rank.communicate(timeout=240)
        assert output.split() == [whole.fingerprint]
    for path in whole.path.iterdir():
        assert (tmp_path / "bank" / path.name).read_bytes() == path.read_bytes()


def test_a_plan_measures_windows(place, corpus, keys):
    plan = plan_harvest(
        keys,
        recipient_tokenizer=place / "tokenizer.json",
        donor=place / "donor",
        taps=(1,),
        contexts=(2, 6),
        corpus=corpus,
    )
    assert plan.num_rows > 100
    assert plan.keys_per_second > 0
