"""Tiny donors, tokenizers and texts from fixed seeds; nothing is downloaded."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

_COMMON = """
the of and to in a is that it was for on are as with his they at be this have from or one had by word but not what all
were we when your can said there use an each which she do how their if will up other about out many then them these so
some her would make like him into time has look two more write go see number no way could people my than first water
been call who oil its now find long down day did get come made may part naïve café über
"""
WORDS = _COMMON.split()


def tiny_text(seed: int, sentences: int = 40) -> str:
    """Sentences of common words in a skewed order, so that n-grams repeat."""
    generator = random.Random(seed)
    lines = []
    for _ in range(sentences):
        words = [WORDS[min(int(generator.expovariate(0.08)), len(WORDS) - 1)] for _ in range(generator.randint(5, 14))]
        lines.append(" ".join(words).capitalize() + ".")
    return "\n".join(lines) + "\n"


def byte_bpe(texts: list[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE tokenizer with ``<|endoftext|>`` as id 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def spaced_bpe(texts: list[str]) -> Tokenizer:
    """Byte-level BPE that puts a space before every text, as RoBERTa's and older OPT's files do."""
    tokenizer = byte_bpe(texts, 320)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer


def sentencepiece_bpe(texts: list[str]) -> Tokenizer:
    """BPE behind Prepend and Replace with a decoder that strips, as Llama 2's."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    special = ["<|endoftext|>", "<unk>"]
    lines = [line for text in texts for line in text.split()]
    tokenizer.train_from_iterator(
        lines, trainers.BpeTrainer(vocab_size=320, special_tokens=special, show_progress=False)
    )
    return tokenizer


def unigram(texts: list[str]) -> Tokenizer:
    """Unigram behind a Metaspace, as T5's and XLM-R's."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    special = ["<|endoftext|>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=320, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def wordpiece(texts: list[str]) -> Tokenizer:
    """WordPiece in lower case, as BERT's."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    special = ["<|endoftext|>", "<unk>"]
    trainer = trainers.WordPieceTrainer(vocab_size=320, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def tiny_donor(folder: Path, *, num_blocks: int = 3, seed: int = 1, tokenizer: Tokenizer | None = None) -> Path:
    """A Llama-style donor of width 32 with its own tokenizer, or the given one, saved as a transformers folder."""
    if tokenizer is None:
        tokenizer = byte_bpe([tiny_text(900 + number) for number in range(4)], 320)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=num_blocks,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    ).save_pretrained(folder)
    return folder
