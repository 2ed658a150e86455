"""Keys to text: what is kept, what is dropped and why."""

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from memgraft.errors import ArgumentError, FormatError
from memgraft.harvesting.text import key_texts, open_tokenizer
from tiny import byte_bpe, tiny_text


@pytest.fixture(scope="module")
def recipient():
    return open_tokenizer(byte_bpe([tiny_text(1)], 300))


@pytest.fixture(scope="module")
def donor():
    return open_tokenizer(byte_bpe([tiny_text(2)], 400))


def words(vocabulary, *, normalizer=None, unknown="[UNK]"):
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(vocabulary)}, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.Fuse()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    return open_tokenizer(tokenizer)


def test_text_reaches_the_donor_unchanged(recipient, donor):
    texts = [" the water", "naïve", " that it was.\n"]
    keys = recipient.encode(texts)
    judged = key_texts(keys, recipient, donor)
    assert judged.texts == texts
    assert judged.reasons == [None] * 3
    assert donor.decode(judged.donor_tokens) == texts
    assert not judged.dropped


def test_half_a_character_is_dropped(recipient, donor):
    byte = recipient.encode(["é€"])[0]
    cut = byte[:-1]
    judged = key_texts([cut, byte], recipient, donor)
    assert judged.reasons == ["partial_utf8", None]
    assert judged.donor_tokens[0] == []


def test_a_real_replacement_character_is_text(recipient, donor):
    keys = recipient.encode(["\ufffd the"])
    assert key_texts(keys, recipient, donor).reasons == [None]


def test_a_key_that_starts_inside_a_word_keeps_its_text(recipient, donor):
    """Encoding "water" anew may merge otherwise than the key did; the text, and so the value, is the same."""
    letters = [token for letter in "water" for token in recipient.encode([letter])[0]]
    assert len(letters) == 5
    assert recipient.encode(["water"])[0] != letters
    assert key_texts([letters], recipient, donor).reasons == [None]
    assert key_texts([letters], recipient, donor, round_trip="ids").reasons == ["retokenized"]


def test_a_tokenizer_that_rewrites_is_seen(donor):
    rewriting = words(["[UNK]", "Word", "word"], normalizer=normalizers.Lowercase())
    assert key_texts([[1], [2]], rewriting, donor).reasons == ["rewritten", None]


def test_special_ids_are_plain_text_for_both_sides(recipient, donor):
    """Text that spells a special token must not become that token in the donor."""
    keys = recipient.encode(["<|endoftext|>"])
    assert 0 not in keys[0]
    judged = key_texts(keys, recipient, donor)
    assert judged.reasons == [None]
    assert 0 not in judged.donor_tokens[0]


def test_a_donor_without_the_words_is_counted(recipient):
    poor = words(["[UNK]", "the"])
    blank = words(["the"], normalizer=normalizers.Replace("x", ""), unknown="the")
    keys = recipient.encode(["the", "water", "x"])
    assert key_texts(keys[:2], recipient, poor).reasons == [None, "donor_unknown"]
    assert key_texts(keys[2:], recipient, blank).dropped == {"donor_empty": 1}


def test_padding_and_truncation_of_the_caller_are_neither_used_nor_touched():
    tokenizer = byte_bpe([tiny_text(1)], 300)
    tokenizer.enable_padding(length=32)
    tokenizer.enable_truncation(2)
    codec = open_tokenizer(tokenizer)
    assert codec.decode(codec.encode([" the water of the people"])) == [" the water of the people"]
    assert tokenizer.padding is not None
    assert tokenizer.truncation is not None


def test_the_same_tokenizer_has_the_same_fingerprint_however_it_is_opened(tmp_path):
    from transformers import PreTrainedTokenizerFast

    tokenizer = byte_bpe([tiny_text(1)], 300)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    opened = [tokenizer, tmp_path, tmp_path / "tokenizer.json", PreTrainedTokenizerFast(tokenizer_object=tokenizer)]
    assert len({open_tokenizer(source).fingerprint for source in opened}) == 1
    assert open_tokenizer(byte_bpe([tiny_text(3)], 300)).fingerprint != open_tokenizer(tokenizer).fingerprint


def test_bad_tokenizers_are_typed_errors(tmp_path):
    with pytest.raises(ArgumentError, match=r"tokenizer\.json, found no such file|no such file"):
        open_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(FormatError, match=r"tokenizer\.json"):
        open_tokenizer(tmp_path)
    with pytest.raises(ArgumentError, match="found int"):
        open_tokenizer(3)


def test_round_trip_mode_is_checked(recipient, donor):
    with pytest.raises(ArgumentError, match="round_trip"):
        key_texts([[1]], recipient, donor, round_trip="bytes")
