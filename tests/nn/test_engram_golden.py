"""The fallback's hashes against an independent transcription of docs/METHOD.md, section 4, in numpy."""

from __future__ import annotations

import re
import unicodedata

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from memgraft.config import FallbackConfig
from memgraft.errors import ArgumentError
from memgraft.nn.compression import CompressedVocabulary, normalize_text
from memgraft.nn.fallback import HashFallback
from memgraft.nn.hashing import is_prime, multipliers, prime_sizes
from memgraft.nn.naive import naive_fallback

TEXT = [
    "The quick brown fox, THE Quick Brown Fox; naïve café Ångström déjà vu.",
    "  two  spaces\tand\ttabs\nlines Ünïcödé straße ﬁne ① Ⅳ Ωμέγα привет мир",
    "日本語 한국어 🙂 e\u0301 0123 x=y*z; def f(a): return a",
] * 3


def byte_bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=["<pad>", "<s>", "</s>"])
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]", "[PAD]"])
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=150, unk_token="<unk>", special_tokens=["<unk>", "<pad>"], show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


TOKENIZERS = {"byte_bpe": byte_bpe, "word_piece": word_piece, "unigram": unigram}


# ------------------------------------------------------------------ the transcription


def written_normal(text: str) -> str:
    text = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", text))
    text = "".join(c for c in text if not unicodedata.category(c).startswith("M"))
    text = "".join(c.lower() for c in text)
    text = re.sub("[ \t\r\n]+", " ", text)
    return " " if text == " " else text.strip()


def written_vocabulary(tokenizer: Tokenizer) -> list[int]:
    seen: list[str] = []
    out = []
    for token in range(tokenizer.get_vocab_size()):
        text = tokenizer.decode([token], skip_special_tokens=False)
        key = tokenizer.id_to_token(token) if "�" in text else (written_normal(text) or text)
        if key not in seen:
            seen.append(key)
        out.append(seen.index(key))
    return out


def written_primes(num_sites: int, table_sizes: list[int], num_heads: int) -> list[list[list[int]]]:
    def prime(n: int) -> bool:
        return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))

    used: list[int] = []
    result = []
    for _ in range(num_sites):
        site = []
        for size in table_sizes:
            start, heads = size - 1, []
            for _ in range(num_heads):
                candidate = start + 1
                while not prime(candidate) or candidate in used:
                    candidate += 1
                used.append(candidate)
                heads.append(candidate)
                start = candidate
            site.append(heads)
        result.append(site)
    return result


def written_slots(
    raw: np.ndarray, lookup: np.ndarray, *, orders, primes, seed: int, layer: int, pad: int
) -> np.ndarray:
    """Engram's own way: whole sequences shifted right and filled with the pad id; one segment, (T,) -> (T, heads)."""
    size = int(lookup.max()) + 1
    half = max(1, (2**63 - 1) // size // 2)
    rng = np.random.default_rng(seed + 10007 * layer)
    r = rng.integers(low=0, high=half, size=(max(orders),), dtype=np.int64)
    m = r * 2 + 1
    x = lookup[raw].astype(np.int64)
    shifts = [np.pad(x, (k, 0), constant_values=lookup[pad])[: len(x)] for k in range(max(orders))]
    columns = []
    for order, heads in zip(orders, primes, strict=True):
        mix = shifts[0] * m[0]
        for k in range(1, order):
            mix = np.bitwise_xor(mix, shifts[k] * m[k])
        columns.extend(mix % p for p in heads)
    return np.stack(columns, axis=-1)


# ------------------------------------------------------------------ comparisons


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_compressed_vocabulary_equals_transcription(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    ours = CompressedVocabulary.from_tokenizer(tokenizer)
    assert ours.ids.tolist() == written_vocabulary(tokenizer)
    assert ours.size < len(ours)


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize(("seed", "layers"), [(0, (1, 15)), (7, (0, 2, 5))])
@pytest.mark.parametrize(("orders", "sizes"), [((2, 3), (50, 70)), ((1, 3, 5), (30, 30, 400))])
def test_slots_equal_transcription(kind: str, seed: int, layers, orders, sizes) -> None:
    tokenizer = TOKENIZERS[kind]()
    vocabulary = CompressedVocabulary.from_tokenizer(tokenizer)
    config = FallbackConfig(orders=orders, num_heads=3, table_size=sizes, dim=6)
    primes = prime_sizes(len(layers), config.table_sizes, config.num_heads)
    assert primes == written_primes(len(layers), list(sizes), 3)
    documents = [np.array(tokenizer.encode(text).ids) for text in TEXT[:3]]
    packed = torch.from_numpy(np.concatenate(documents))[None]
    segments = torch.from_numpy(np.repeat(np.arange(3), [len(d) for d in documents]))[None]
    for position, layer in enumerate(layers):
        fallback = HashFallback(
            config, vocabulary=vocabulary, layer=layer, sizes=primes[position], seed=seed, pad_token_id=1
        )
        got = fallback.slots(packed, segments, packed.shape[1])[0].numpy() - fallback.offsets.numpy()
        expected = np.concatenate(
            [
                written_slots(d, vocabulary.ids, orders=orders, primes=primes[position], seed=seed, layer=layer, pad=1)
                for d in documents
            ]
        )
        np.testing.assert_array_equal(got, expected)


def test_golden_numbers() -> None:
    """Numbers written down once, from the transcription above: they hold across releases."""
    assert multipliers(0, 1, 3, 1000).tolist() == GOLDEN_MULTIPLIERS
    assert prime_sizes(2, (10, 20), 2) == [[[11, 13], [23, 29]], [[17, 19], [31, 37]]]
    lookup = np.arange(1000)
    slots = written_slots(
        np.array([5, 999, 0, 17]), lookup, orders=(2, 3), primes=[[11, 13], [23, 29]], seed=0, layer=1, pad=2
    )
    fallback = HashFallback(
        FallbackConfig(orders=(2, 3), num_heads=2, table_size=(10, 20), dim=2),
        vocabulary=CompressedVocabulary(lookup),
        layer=1,
        sizes=[[11, 13], [23, 29]],
        seed=0,
        pad_token_id=2,
    )
    got = fallback.slots(torch.tensor([[5, 999, 0, 17]]), torch.zeros(1, 4, dtype=torch.int64), 4)[0]
    assert (got - fallback.offsets).tolist() == slots.tolist() == GOLDEN_SLOTS


GOLDEN_MULTIPLIERS = [7593627661414631, 479593001838623, 3563315849468963]
GOLDEN_SLOTS = [[4, 2, 11, 17], [7, 6, 2, 13], [7, 6, 8, 2], [6, 7, 11, 14]]


@pytest.mark.parametrize("text", [" ", "\n\t", "É", " Ångström ", "ΑΣ", "ﬁ", "A\u0488b", "\u00a0", ""])
def test_normal_form_equals_transcription(text: str) -> None:
    assert normalize_text(text) == written_normal(text)


def test_undecodable_pieces_and_lone_accents_keep_their_spelling() -> None:
    vocabulary = CompressedVocabulary.from_strings(["a", "A", "\u0301", "�", "�"], ["a", "A", "x", "Ã", "Ã©"])
    assert vocabulary.ids.tolist() == [0, 0, 1, 2, 3]


def test_padding_rows_of_the_embedding_do_not_change_the_hashes() -> None:
    tokenizer = unigram()
    exact = CompressedVocabulary.from_tokenizer(tokenizer)
    padded = CompressedVocabulary.from_tokenizer(tokenizer, vocab_size=len(exact) + 50)
    assert len(padded) == len(exact) + 50
    assert padded.size == exact.size
    with pytest.raises(ArgumentError, match="not the recipient's tokenizer"):
        CompressedVocabulary.from_tokenizer(tokenizer, vocab_size=10)


@pytest.mark.parametrize("history", [0, 1, 2, 7])
def test_history_gives_the_same_slots(history: int) -> None:
    vocabulary = CompressedVocabulary(np.arange(40) // 2)
    config = FallbackConfig(orders=(2, 3), num_heads=2, table_size=50, dim=4)
    sizes = prime_sizes(1, config.table_sizes, 2)[0]
    fallback = HashFallback(config, vocabulary=vocabulary, layer=3, sizes=sizes, seed=1, pad_token_id=0)
    tokens = torch.randint(0, 40, (2, 12), generator=torch.Generator().manual_seed(0))
    segments = torch.tensor([[0] * 6 + [1] * 6, [-1] * 4 + [0] * 8])
    whole = fallback.slots(tokens, segments, 12)
    for start in range(history, 12):
        # Less history than the orders need is only exact at the sequence's start.
        if start - history > 0 and history < 2:
            continue
        part = fallback.slots(tokens[:, start - history :], segments[:, start - history :], 12 - start)
        assert torch.equal(part, whole[:, start:])
    for b in range(2):
        for t in range(12):
            expected = naive_fallback(fallback, tokens[b].tolist(), segments[b].tolist(), t)
            assert torch.equal(fallback.table.weight[whole[b, t]].flatten(), expected)


def test_is_prime() -> None:
    small = [n for n in range(2000) if n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))]
    assert [n for n in range(2000) if is_prime(n)] == small
    assert is_prime(2**61 - 1)
    assert not is_prime((2**31 - 1) * (2**19 - 1))
    assert not is_prime(3215031751)  # strong pseudoprime to 2, 3, 5 and 7
