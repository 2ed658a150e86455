"""The text of a key is what stands in the corpus, whatever the tokenizer does at the edges of a text."""

import json
from itertools import product

import pytest
from families import FAMILIES, llama2, metaspace, t5, wordpiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from memgraft.harvesting.text import key_texts, open_tokenizer
from memgraft.tokenizer.inside import lost_bytes


def key(codec, *pieces):
    ids = [codec.token_id(piece) for piece in pieces]
    assert None not in ids
    return ids


SENTENCE_PIECE = ["llama2", "llama2 rebuilt", "metaspace always", "metaspace first", "metaspace never", "t5"]


@pytest.mark.parametrize("family", SENTENCE_PIECE)
def test_a_word_start_keeps_its_space_and_the_middle_of_a_word_has_none(family):
    codec = open_tokenizer(FAMILIES[family]())
    keys = [key(codec, *pieces) for pieces in (("▁king", "▁of"), ("king", "▁of"), ("▁the",), ("the",), ("ing", "▁the"))]
    judged = key_texts(keys, codec, codec)
    assert judged.texts == [" king of", "king of", " the", "the", "ing the"]
    assert judged.reasons == [None] * 5
    assert judged.num_shared == 0
    if family != "t5":  # which cannot say that a word goes on
        assert judged.donor_tokens == keys


def test_word_pieces_go_on_with_a_word():
    codec = open_tokenizer(wordpiece())
    keys = [key(codec, *pieces) for pieces in (("king", "of"), ("##king", "of"), ("##ing", "the"), ("the", "##n"))]
    judged = key_texts(keys, codec, codec)
    assert judged.texts == [" king of", "king of", "ing the", " then"]
    assert judged.reasons == [None] * 4
    assert judged.donor_tokens[0] == keys[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_two_keys_share_a_text_only_if_the_corpus_does(family):
    """Every pair of tokens: one text for two keys means that gluing them into a word gives one text too."""
    codec = open_tokenizer(FAMILIES[family]())
    some = [token for token in codec.known.nonzero()[0].tolist() if len(codec.piece(token) or "") > 1][-24:]
    keys = [list(pair) for pair in product(some, some)]
    judged = key_texts(keys, codec, codec)
    (start,) = codec.encode(["a"])
    by_text: dict[str, list[list[int]]] = {}
    for ids, text, reason in zip(keys, judged.texts, judged.reasons, strict=True):
        if reason is None:
            by_text.setdefault(text, []).append(ids)
            assert codec.decode([[*start, *ids]]) == ["a" + text]
    for text, sharing in by_text.items():
        assert len(set(codec.decode([[*start, *ids] for ids in sharing]))) == 1, text
    assert judged.num_shared == sum(len(sharing) - 1 for sharing in by_text.values())


@pytest.mark.parametrize("donor", ["llama2", "metaspace always", "t5", "wordpiece", "gpt2", "qwen2"])
@pytest.mark.parametrize("recipient", ["llama2", "metaspace first", "gpt2"])
def test_a_donor_of_another_family_reads_the_word_with_its_space(recipient, donor):
    recipient, donor = open_tokenizer(FAMILIES[recipient]()), open_tokenizer(FAMILIES[donor]())
    (start,) = recipient.encode(["a the"])
    the = start[len(recipient.encode(["a"])[0]) :]
    judged = key_texts([the], recipient, donor)
    assert judged.texts == [" the"]
    assert donor.decode_inside(judged.donor_tokens) == [" the"]
    assert len(judged.donor_tokens[0]) == 1


def test_bytes_that_are_no_text_are_dropped_and_whole_characters_kept():
    codec = open_tokenizer(llama2())
    (ids,) = codec.encode_inside(["é"])
    assert [codec.piece(token) for token in ids] == ["<0xC3>", "<0xA9>"]
    judged = key_texts([ids, ids[:1], [*key(codec, "▁the"), *ids]], codec, codec)
    assert judged.reasons == [None, "partial_utf8", None]
    assert judged.texts[2] == " theé"


def test_what_a_normalizer_rewrites_is_dropped():
    from tokenizers import normalizers

    made = metaspace("always")
    made.normalizer = normalizers.Lowercase()
    codec = open_tokenizer(made)
    judged = key_texts([key(codec, "T", "he"), key(codec, "th", "e")], codec, codec)
    assert judged.reasons == ["rewritten", None]


def test_ids_mode_asks_for_the_same_tokens():
    codec = open_tokenizer(t5())
    keys = [key(codec, "▁king", "▁of"), key(codec, "▁ki", "ng")]
    assert key_texts(keys, codec, codec, round_trip="ids").reasons == [None, "retokenized"]


@pytest.mark.parametrize("family", FAMILIES)
@given(text=st.text(max_size=30))
@settings(max_examples=25, deadline=None)
def test_what_loses_nothing_gives_every_text_back(family, text):
    """Byte-level tokenizers without edges are not asked whether they lose something; the others are."""
    tokenizer = FAMILIES[family]()
    lost = lost_bytes(json.loads(tokenizer.to_str()))
    assert (lost is not None) == (family in ("gpt2", "qwen2", "smollm2"))
    if lost is not None:
        codec = open_tokenizer(tokenizer)
        (ids,) = codec.encode([text])
        assert codec.decode([ids]) == [text]
        assert codec.encode_inside([text]) == [ids]


def test_a_byte_without_a_token_is_found_out():
    """As in SmolLM2's vocabulary, which lacks bytes of planes that nobody writes."""
    facts = json.loads(FAMILIES["smollm2"]().to_str())
    facts["model"]["vocab"] = {token: place for token, place in facts["model"]["vocab"].items() if token not in "ñÂ"}
    assert lost_bytes(facts) == {0xF1, 0xC2}
    tokenizer = Tokenizer.from_str(json.dumps(facts))
    codec = open_tokenizer(tokenizer)
    texts = ["the sea", "\N{NO-BREAK SPACE}x", "\U00040000"]
    assert codec.stable(texts) == [True, False, False]
    assert codec.stable(texts[:1]) == [True]
    judged = key_texts([codec.encode(["the sea"])[0]], codec, codec)
    assert judged.reasons == [None]


def test_what_takes_something_away_is_told():
    facts = json.loads(FAMILIES["gpt2"]().to_str())
    assert lost_bytes(facts) == set()
    strips = {"id": 999, "content": "<x>", "single_word": False, "lstrip": True, "rstrip": False, "normalized": False}
    spaced = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    removes = {"type": "Split", "pattern": {"String": " "}, "behavior": "Removed", "invert": False}
    for changes in (
        {"normalizer": {"type": "NFC"}},
        {"added_tokens": [*facts["added_tokens"], strips]},
        {"added_tokens": [*facts["added_tokens"], {**strips, "lstrip": False, "content": "<a b>"}]},
        {"pre_tokenizer": spaced},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [removes, {**spaced, "add_prefix_space": False}]}},
        {"pre_tokenizer": None},
        {"decoder": None},
        {"model": {**facts["model"], "end_of_word_suffix": "</w>"}},
    ):
        assert lost_bytes({**facts, **changes}) is None, changes
