"""Shards, parts, overlays and annotations go together by what their tokenizers do, not by whose file it is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from families import FAMILIES, REGEX, byte_level, llama2, saved
from tokenizers import Tokenizer, normalizers

from memgraft import Bank, Corpus, mine
from memgraft.bank.annotation import annotate
from memgraft.corpus import tokenize_folder
from memgraft.errors import FingerprintError, TokenError
from memgraft.harvesting.extend import mine_lacking
from memgraft.mining import merge_parts, mine_part, select_parts
from memgraft.tokenizer import mapping_facts, open_tokenizer, tokenizer_facts


def text(folder: Path, name: str) -> Path:
    made = folder / f"text-{name}"
    made.mkdir()
    for place in range(3):
        (made / f"{place}.txt").write_text(" ".join([f"the king of the thing {name}", "12 kings"] * 8))
    return made


def saved_again(tokenizer: Tokenizer, folder: Path) -> Path:
    """A file of other bytes: padding and truncation are set, and a token is added."""
    again = Tokenizer.from_str(tokenizer.to_str())
    again.enable_padding(length=8)
    again.enable_truncation(4)
    again.add_special_tokens(["<|later|>"])
    return saved(again, folder)


def others(tokenizer: Tokenizer) -> dict[str, Tokenizer]:
    facts = json.loads(tokenizer.to_str())
    swapped = json.loads(tokenizer.to_str())
    swapped["model"]["merges"] = [*facts["model"]["merges"][1:], facts["model"]["merges"][0]]
    lowered = Tokenizer.from_str(tokenizer.to_str())
    lowered.normalizer = normalizers.Lowercase()
    return {
        "merges": Tokenizer.from_str(json.dumps(swapped)),
        "cut": byte_level(digits=True),
        "normalizer": lowered,
        "vocabulary": llama2(),
    }


@pytest.mark.parametrize("family", ["gpt2", "llama2", "metaspace first", "unigram with bytes", "wordpiece", "words"])
def test_shards_and_parts_of_a_file_that_was_saved_again_are_one_corpus(family, tmp_path):
    tokenizer = FAMILIES[family]()
    first, second = saved(tokenizer, tmp_path / "first"), saved_again(tokenizer, tmp_path / "second")
    shards = tmp_path / "shards"
    shards.mkdir()
    paths = [tokenize_folder(text(tmp_path, name), file, shards / name) for name, file in (("a", first), ("b", second))]
    whole = Corpus.open(shards)
    assert whole.tokenizer is None, "two files"
    assert whole.tokenizer_mapping == mapping_facts(first)
    assert whole.vocab_size == open_tokenizer(second).vocab_size
    keys = mine(whole, budget=30)
    assert keys.metadata["tokenizer_mapping"] == mapping_facts(first)

    sizes = {"vocab_size": whole.vocab_size, "reserved": whole.special_ids}
    parts = []
    for rank, path in enumerate(paths):
        corpus = Corpus.open(path)
        part = mine_part(corpus, tmp_path / f"{rank}.mgr", rank=rank, world=2, apart=True, **sizes)
        parts.append(part.path)
    found = select_parts(parts, budget=30)
    assert [found.key(row) for row in range(len(found))] == [keys.key(row) for row in range(len(keys))]
    assert found.metadata["tokenizer"] is None
    assert found.metadata["tokenizer_mapping"] == mapping_facts(first)
    merged = [merge_parts(order, tmp_path / f"merged-{n}.mgr").path for n, order in enumerate((parts, parts[::-1]))]
    assert merged[0].read_bytes() == merged[1].read_bytes()
    # The merge is there: the same call with a part that another file made again does nothing.
    before = parts[0].stat().st_mtime_ns
    again = Corpus.open(paths[0], tokenizer=second)
    assert mine_part(again, parts[0], rank=0, world=2, apart=True, **sizes).path == parts[0]
    assert parts[0].stat().st_mtime_ns == before


@pytest.mark.parametrize("other", ["merges", "cut", "normalizer", "vocabulary"])
def test_shards_and_parts_of_another_tokenizer_are_refused(other, tmp_path):
    tokenizer = byte_level()
    files = saved(tokenizer, tmp_path / "first"), saved(others(tokenizer)[other], tmp_path / "other")
    shards = tmp_path / "shards"
    shards.mkdir()
    paths = [tokenize_folder(text(tmp_path, name), file, shards / name) for name, file in zip("ab", files, strict=True)]
    with pytest.raises(TokenError, match="open corpora of different tokenizers apart"):
        Corpus.open(shards)
    parts = [
        mine_part(
            Corpus.open(path), tmp_path / f"{rank}.mgr", rank=rank, world=2, apart=True, vocab_size=600, reserved=(599,)
        ).path
        for rank, path in enumerate(paths)
    ]
    with pytest.raises(FingerprintError, match=r"1\.mgr: expected the (tokenizer|reserved tokens) .*0\.mgr"):
        select_parts(parts)


def bank_of(path: Path, keys, tokenizer: Path, *, value: float) -> Bank:
    facts = tokenizer_facts(open_tokenizer(tokenizer), keys.vocab_size)
    values = np.full((len(keys), 1, 4), value, np.float32)
    return Bank.create(
        path, keys=keys, values=values, taps=(1,), dtype="fp32", donor={"fingerprint": "d" * 64}, tokenizer=facts
    )


def test_overlays_annotations_and_banks_of_a_file_that_was_saved_again(tmp_path):
    first = saved(byte_level(regex=REGEX), tmp_path / "first")
    second = saved_again(byte_level(regex=REGEX), tmp_path / "second")
    foreign = saved(byte_level(), tmp_path / "foreign")
    corpora = [
        Corpus.open(tokenize_folder(text(tmp_path, name), file, tmp_path / name))
        for name, file in (("base", first), ("over", second), ("foreign", foreign))
    ]
    sets = [mine(corpus, budget=20) for corpus in (corpora[0], corpora[2])]
    base = bank_of(tmp_path / "bank-0", sets[0], first, value=0.0)
    # The second corpus was read by a tokenizer that has a token more than the bank's vocabulary.
    lacking = mine_lacking(base, corpora[1], budget=20)
    assert lacking.keys.vocab_size == base.index.vocab_size < corpora[1].vocab_size
    over = bank_of(tmp_path / "bank-1", lacking.keys, second, value=1.0)
    other = bank_of(tmp_path / "bank-2", sets[1], foreign, value=2.0)
    assert len(Bank.open([base.path, over.path])) == len(base) + len(over)
    with pytest.raises(FingerprintError, match="mine the overlay with the base's tokenizer"):
        Bank.open([base.path, other.path])
    assert annotate(base, corpora[1], tmp_path / "rows").facts["num_hits"] > 0
    with pytest.raises(FingerprintError, match="tokenise the text with the recipient's tokenizer"):
        annotate(base, corpora[2], tmp_path / "other-rows")
