"""The default donor itself: shared beginnings and windows against each key alone. Skipped where it is not cached."""

import pytest

import memgraft
from memgraft.assets import default_donor
from memgraft.assets.cache import cache_directory
from memgraft.harvesting import donor_folder, harvest, open_donor, verify_rows
from memgraft.harvesting.forward import donor_values
from memgraft.harvesting.packing import Ragged
from memgraft.harvesting.sharing import find_sharing, relative_error
from tiny import tiny_text

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not list((cache_directory() / "donor").glob("smollm2-135m-*/*.gguf")),
        reason="SmolLM2-135M was not fetched: memgraft quickstart does",
    ),
]


@pytest.fixture(scope="module")
def donor():
    return open_donor(default_donor(), compute_dtype="float32")


@pytest.fixture(scope="module")
def corpus(donor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("smollm2")
    with memgraft.CorpusWriter(folder / "corpus", vocab_size=donor.tokenizer.vocab_size, eos_id=0) as writer:
        for number in range(4):
            (ids,) = donor.tokenizer.encode([tiny_text(number)])
            writer.add([*ids, 0])
        writer.finish()
    return memgraft.Corpus.open(folder / "corpus.bin")


def test_each_beginning_once_is_each_key_alone(donor, corpus):
    tokens = corpus.tokens(0, 400).tolist()
    keys = Ragged.of([tokens[start : start + 1 + start % 40] for start in range(0, 300, 5)])
    head = donor.tokenizer.encode(["\n"])[0]
    sharing = find_sharing(donor, (8, 30), keys, head)
    assert sharing.shared, sharing.reason
    alone = donor_values(donor, (8, 24, 30), keys.headed(head), max_tokens=1)
    together = donor_values(donor, (8, 24, 30), keys.headed(head), max_tokens=1024, shared=True)
    assert relative_error(together, alone) <= 1e-5


@pytest.mark.parametrize("contexts", [None, (2, 12)])
def test_a_bank_is_what_the_donor_says(donor, corpus, tmp_path, contexts):
    keys = memgraft.mine(corpus, (2, 3, 4), budget=120)
    bank = harvest(
        keys,
        recipient_tokenizer=donor_folder(default_donor()) / "tokenizer.json",
        donor=donor,
        taps=(8, 24),
        prefix="\n",
        contexts=contexts,
        corpus=corpus if contexts else None,
        out=tmp_path / "bank",
    )
    check = verify_rows(bank, donor=donor, sample=60, corpus=corpus if contexts else None)
    assert check.ok, check.findings
