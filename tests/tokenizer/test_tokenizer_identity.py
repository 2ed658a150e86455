"""One mapping, one fingerprint; another mapping, another one."""

import json

import pytest
from families import FAMILIES, MERGES, REGEX, SAME_REGEX, byte_level, llama2, metaspace, saved, with_template, wordpiece
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from memgraft import Corpus, NgramIndex, coverage, mine
from memgraft.corpus import tokenize_folder
from memgraft.errors import CorpusError, FingerprintError
from memgraft.keysets import union
from memgraft.mining import mine_part, select_parts
from memgraft.tokenizer import (
    differs_from,
    mapping_facts,
    open_tokenizer,
    other_mapping,
    recorded_facts,
    tokenizer_facts,
)


def fingerprint(source):
    return open_tokenizer(source).fingerprint


@pytest.mark.parametrize("family", FAMILIES)
def test_saving_padding_templates_and_later_tokens_change_nothing(family, tmp_path):
    tokenizer = FAMILIES[family]()
    expected = fingerprint(tokenizer)
    assert fingerprint(saved(tokenizer, tmp_path / "saved")) == expected
    again = Tokenizer.from_file(str(tmp_path / "saved" / "tokenizer.json"))
    again.enable_padding(length=8)
    again.enable_truncation(4)
    again = with_template(again)
    again.add_special_tokens(["<|later|>", "<|later still|>"])
    again.add_tokens(["the king", AddedToken(" of", normalized=False)])
    assert fingerprint(again) == expected


def test_two_ways_to_write_one_mapping_are_one():
    assert fingerprint(llama2()) == fingerprint(llama2(rebuilt=True))
    assert fingerprint(byte_level(regex=REGEX)) == fingerprint(byte_level(regex=SAME_REGEX))
    nested = byte_level(regex=REGEX)
    nested.pre_tokenizer = pre_tokenizers.Sequence([nested.pre_tokenizer])
    assert fingerprint(nested) == fingerprint(byte_level(regex=REGEX))
    spaced = byte_level()
    spaced.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, trim_offsets=False)
    assert fingerprint(spaced) == fingerprint(byte_level()), "what stands before a whole text is no part of the mapping"


def test_specials_listed_as_plain_tokens_are_the_same():
    listed, plain = llama2(), llama2()
    facts = json.loads(plain.to_str())
    for token in facts["added_tokens"]:
        token["special"] = False
    assert fingerprint(listed) == fingerprint(Tokenizer.from_str(json.dumps(facts)))


def others():
    yield "gpt2", byte_level()
    yield "digits apart", byte_level(digits=True)
    yield "words of Qwen2", byte_level(regex=REGEX)
    yield "digits by three", byte_level(regex=REGEX.replace(r"|\p{N}|", r"|\p{N}{1,3}|"))
    yield "apostrophes in lower case", byte_level(regex=REGEX.replace("(?i:", "(?:"))
    yield "merges in another order", byte_level(merges=[("1", "2"), ("t", "h"), ("th", "e"), ("Ġ", "the")])
    yield "a merge less", byte_level(merges=[("t", "h"), ("th", "e"), ("1", "2")])
    lowered = byte_level()
    lowered.normalizer = normalizers.Lowercase()
    yield "lower case", lowered
    composed = byte_level()
    composed.normalizer = normalizers.NFC()
    yield "composed", composed
    silent = byte_level()
    silent.decoder = decoders.Fuse()
    yield "another decoder", silent
    yield "llama2", llama2()
    yield "llama2, rare merges swapped", llama2(merges=[*MERGES[:-2], MERGES[-1], MERGES[-2]])
    yield "llama2, a rare merge less", llama2(merges=MERGES[:-1])
    unfallen = json.loads(llama2().to_str())
    unfallen["model"]["byte_fallback"] = False
    yield "no byte fallback", Tokenizer.from_str(json.dumps(unfallen))
    yield "unigram", metaspace("always")
    scored = json.loads(metaspace("always").to_str())
    scored["model"]["vocab"][-1][1] -= 0.5
    yield "another score", Tokenizer.from_str(json.dumps(scored))
    yield "wordpiece", wordpiece()
    yield "wordpiece that keeps case", wordpiece(lowercase=False)
    yield "words", Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    yield "the same words, other ids", Tokenizer(models.WordLevel({"a": 1, "b": 0}, unk_token="a"))


def test_other_vocabularies_merges_cuts_and_decoders_are_others():
    found = {}
    for name, tokenizer in others():
        found.setdefault(fingerprint(tokenizer), []).append(name)
    assert [names for names in found.values() if len(names) > 1] == []


@pytest.mark.parametrize("kind", ["LlamaTokenizer", "GemmaTokenizer", "Qwen2Tokenizer", "GPT2Tokenizer"])
def test_a_rebuilt_tokenizer_is_its_file_or_reads_otherwise(kind, tmp_path):
    """Where transformers gives the ids of the file, the fingerprint is the file's; where it does not, it is not."""
    from transformers import AutoTokenizer

    made = {"Qwen2Tokenizer": lambda: byte_level(regex=REGEX), "GPT2Tokenizer": byte_level}.get(kind, llama2)()
    if kind == "Qwen2Tokenizer":
        made.normalizer = normalizers.NFC()
    folder = saved(made, tmp_path / kind)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
    auto = AutoTokenizer.from_pretrained(str(folder))
    texts = ["the king's 12 of  the\n\n the", "x the, the", "THE'S kings 123"]
    same = [auto.encode(t, add_special_tokens=False) for t in texts] == open_tokenizer(folder).encode(texts)
    assert (fingerprint(auto) == fingerprint(folder)) == same
    auto.add_tokens(["<later>"])
    auto.save_pretrained(tmp_path / "again")
    assert (fingerprint(tmp_path / "again") == fingerprint(folder)) == same


def test_a_recorded_tokenizer_is_recognised_and_another_meaning_of_its_ids_is_not(tmp_path):
    tokenizer = byte_level()
    tokenizer.add_tokens(["<user>"])
    codec = open_tokenizer(saved(tokenizer, tmp_path / "t"))
    facts = tokenizer_facts(codec, codec.vocab_size + 64)
    assert facts["vocab_size"] == codec.vocab_size
    assert differs_from(codec, facts) is None
    assert differs_from(codec, {}) is None
    tokenizer.add_tokens(["<later>"])
    assert differs_from(open_tokenizer(tokenizer), facts) is None
    renamed = byte_level()
    renamed.add_tokens(["<assistant>"])
    assert "added tokens" in (differs_from(open_tokenizer(renamed), facts) or "")
    assert "found" in (differs_from(open_tokenizer(byte_level(digits=True)), facts) or "")


def test_the_fingerprint_of_older_banks_is_recognised(tmp_path):
    codec = open_tokenizer(saved(byte_level(), tmp_path / "t"))
    old = {"fingerprint": codec.old_fingerprint, "vocab_size": codec.vocab_size}
    assert differs_from(codec, old) is None
    assert differs_from(open_tokenizer(byte_level(digits=True)), old) is not None
    by_file = {"fingerprint": "0" * 64, "file_fingerprint": codec.file_fingerprint}
    assert differs_from(codec, by_file) is None


def test_a_tokenizer_without_a_backend_is_told_by_what_it_does():
    class Spelling:
        vocab_size = 27

        def __init__(self, shift=0, extra=()):
            self.shift, self.extra = shift, list(extra)

        def get_vocab(self):
            return {chr(97 + i): (i + self.shift) % 26 for i in range(26)} | {"?": 26} | self.get_added_vocab()

        def get_added_vocab(self):
            return {piece: 27 + place for place, piece in enumerate(self.extra)}

        def encode(self, text, add_special_tokens):
            return [self.get_vocab().get(letter, 26) for letter in text]

        def decode(self, ids, **_):
            names = {token: piece for piece, token in self.get_vocab().items()}
            return "".join(names[token] for token in ids)

    assert fingerprint(Spelling()) == fingerprint(Spelling(extra=["<later>"]))
    assert fingerprint(Spelling()) != fingerprint(Spelling(shift=1))


def text_folder(path):
    path.mkdir()
    for place in range(4):
        (path / f"{place}.txt").write_text(" ".join(["the king of the thing", f"12 kings {place}"] * 8))
    return path


def again(folder, out, **other):
    """The same mapping in a file of other bytes; with ``other``, another tokenizer."""
    made = byte_level(**other) if other else Tokenizer.from_file(str(folder / "tokenizer.json"))
    made.enable_truncation(4)
    made.add_special_tokens(["<|later|>"])
    return saved(made, out)


@pytest.mark.parametrize("in_parts", [False, True])
def test_keys_are_of_the_mapping_that_made_them_not_of_its_file(in_parts, tmp_path):
    first = saved(byte_level(), tmp_path / "first")
    second, third = again(first, tmp_path / "second"), again(first, tmp_path / "third", digits=True)
    corpus = Corpus.open(tokenize_folder(text_folder(tmp_path / "text"), first, tmp_path / "tokens"))
    if in_parts:
        mine_part(corpus, tmp_path / "part.mgr")
        keys = select_parts([tmp_path / "part.mgr"], budget=20)
    else:
        keys = mine(corpus, budget=20)
    recorded = recorded_facts(keys.metadata["tokenizer"], keys.metadata["tokenizer_mapping"])
    for source in (second, Tokenizer.from_file(str(second / "tokenizer.json"))):
        assert differs_from(open_tokenizer(source), recorded) is None
    for source in (third, Tokenizer.from_file(str(third / "tokenizer.json"))):
        assert differs_from(open_tokenizer(source), recorded) is not None

    assert len(Corpus.open(tmp_path / "tokens.bin", tokenizer=second)) == len(corpus)
    with pytest.raises(CorpusError, match="another tokenizer"):
        Corpus.open(tmp_path / "tokens.bin", tokenizer=third)
    # A set of a larger vocabulary is of other ids; a stream is only refused where its tokenizer is another.
    index = NgramIndex.build(keys)
    assert coverage(index, Corpus.open(tmp_path / "text", tokenizer=second), keys=keys)["coverage"] > 0
    with pytest.raises(FingerprintError, match="expected tokens"):
        coverage(index, Corpus.open(tmp_path / "text", tokenizer=third), keys=keys)
    assert len(union([keys, keys])) == len(keys)


def test_a_loader_that_drops_the_digit_split_is_told_from_the_file(tmp_path):
    """StarCoder's files: transformers rebuilds them as GPT-2's, whose words keep digits together."""
    from transformers import AutoTokenizer

    folder = saved(byte_level(digits=True), tmp_path / "starcoder")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    auto = AutoTokenizer.from_pretrained(str(folder))
    assert [auto.encode("12")] != open_tokenizer(folder).encode(["12"]), "the loader reads the file as it is now"
    corpus = Corpus.open(tokenize_folder(text_folder(tmp_path / "text"), folder, tmp_path / "tokens"))
    metadata = mine(corpus, budget=20).metadata
    recorded = recorded_facts(metadata["tokenizer"], metadata["tokenizer_mapping"])
    assert differs_from(open_tokenizer(folder), recorded) is None
    assert differs_from(open_tokenizer(auto), recorded) is not None


def test_records_of_the_file_alone_are_read_as_before(tmp_path):
    first = saved(byte_level(), tmp_path / "first")
    codec, later = open_tokenizer(first), open_tokenizer(again(first, tmp_path / "again"))
    old = recorded_facts(codec.file_fingerprint, None)
    assert differs_from(codec, old) is None
    assert "expected the file" in (differs_from(later, old) or "")
    assert differs_from(open_tokenizer(byte_level()), old) is None, "an object names no file"
    assert other_mapping(old, recorded_facts(later.file_fingerprint, mapping_facts(later)))
    assert not other_mapping(old, recorded_facts(None, None))
