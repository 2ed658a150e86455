"""Small tokenizers of the families that people have, each as its file says and as transformers may rebuild it."""

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

LETTERS = "abcdefghijklmnopqrstuvwxyz"
PIECES = [
    "▁",
    *LETTERS,
    *"ABT0123.,'",
    "th",
    "he",
    "the",
    "▁t",
    "▁th",
    "▁the",
    "ki",
    "ng",
    "king",
    "▁k",
    "▁ki",
    "▁king",
]
PIECES += ["of", "▁o", "▁of", "in", "ing"]
MERGES = [("t", "h"), ("th", "e"), ("h", "e"), ("▁", "the"), ("▁", "t"), ("▁t", "h"), ("k", "i"), ("n", "g")]
MERGES += [("ki", "ng"), ("▁", "king"), ("▁", "k"), ("▁k", "i"), ("o", "f"), ("▁", "of"), ("▁", "o"), ("i", "n")]
MERGES += [("in", "g"), ("i", "ng")]
_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
REGEX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)" + _WORDS
SAME_REGEX = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])" + _WORDS


def llama2(*, rebuilt: bool = False, merges: list[tuple[str, str]] | None = None) -> Tokenizer:
    """SentencePiece BPE with byte fallback; Prepend and Replace, or the Metaspace that transformers makes of them."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES]
    merges = MERGES if merges is None else merges
    vocabulary = {token: place for place, token in enumerate(tokens)}
    model = models.BPE(vocabulary, merges, unk_token=None if rebuilt else "<unk>", fuse_unk=True, byte_fallback=True)
    made = Tokenizer(model)
    if rebuilt:
        made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    else:
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    return made


def metaspace(scheme: str) -> Tokenizer:
    """Unigram behind a Metaspace, as XLM-R or newer T5."""
    made = Tokenizer(
        models.Unigram([("<unk>", 0.0), *((piece, -float(len(PIECES) - len(piece))) for piece in PIECES)], 0)
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme)
    made.decoder = decoders.Metaspace(replacement="▁", prepend_scheme=scheme)
    made.add_special_tokens(["<unk>"])
    return made


def t5() -> Tokenizer:
    """Unigram that cuts at blanks before its Metaspace, as old T5 files do."""
    made = metaspace("always")
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), made.pre_tokenizer])
    return made


def t5_with_sentinels() -> Tokenizer:
    """T5 as its files are: the sentinels are pieces of the model and special tokens."""
    facts = json.loads(t5().to_str())
    sentinels = [f"<extra_id_{place}>" for place in range(4)]
    facts["model"]["vocab"] += [[sentinel, 0.0] for sentinel in sentinels]
    made = Tokenizer.from_str(json.dumps(facts))
    made.add_special_tokens(sentinels)
    return made


def unigram_with_bytes() -> Tokenizer:
    """Unigram that falls back to bytes, as T5Gemma's and Llama-like Unigram files do."""
    facts = json.loads(metaspace("always").to_str())
    facts["model"]["vocab"] += [[f"<0x{byte:02X}>", -20.0] for byte in range(256)]
    facts["model"]["byte_fallback"] = True
    made = Tokenizer.from_str(json.dumps(facts))
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return made


def words() -> Tokenizer:
    """Whole words and nothing else."""
    listed = ["<unk>", "the", "king", "of", "thing", "kings", "12", "a", "b"]
    made = Tokenizer(models.WordLevel({word: place for place, word in enumerate(listed)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(["<unk>"])
    return made


def wordpiece(*, lowercase: bool = True) -> Tokenizer:
    """WordPiece, as BERT's."""
    words = ["the", "king", "of", "tha", "x"]
    tokens = ["[PAD]", "[UNK]", "[CLS]", *LETTERS, *"0123.,'", *words, *(f"##{w}" for w in [*LETTERS, "ing", "king"])]
    made = Tokenizer(models.WordPiece({t: i for i, t in enumerate(dict.fromkeys(tokens))}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece(prefix="##")
    made.add_special_tokens(["[PAD]", "[UNK]", "[CLS]"])
    return made


def byte_level(
    *, regex: str | None = None, digits: bool = False, merges: list[tuple[str, str]] | None = None
) -> Tokenizer:
    """Byte-level BPE as GPT-2's, behind a Split as Qwen2's, or behind Digits as SmolLM2's."""
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("1", "2")] if merges is None else merges
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *dict.fromkeys(["th", "the", "Ġthe", "12", *(left + right for left, right in merges)])]
    made = Tokenizer(models.BPE({token: place for place, token in enumerate(tokens)}, merges))
    first: list = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    if regex is not None:
        first = [pre_tokenizers.Split(Regex(regex), "isolated", False)]
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex is None)
    made.pre_tokenizer = pre_tokenizers.Sequence([*first, level]) if first else level
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|endoftext|>"])
    return made


def with_template(tokenizer: Tokenizer) -> Tokenizer:
    """The same, putting its first token before every text."""
    token = tokenizer.id_to_token(1)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{token} $A", special_tokens=[(token, 1)])
    return tokenizer


FAMILIES = {
    "llama2": llama2,
    "llama2 rebuilt": lambda: llama2(rebuilt=True),
    "metaspace always": lambda: metaspace("always"),
    "metaspace first": lambda: metaspace("first"),
    "metaspace never": lambda: metaspace("never"),
    "t5": t5,
    "t5 with sentinels": t5_with_sentinels,
    "unigram with bytes": unigram_with_bytes,
    "wordpiece": wordpiece,
    "words": words,
    "gpt2": byte_level,
    "qwen2": lambda: byte_level(regex=REGEX),
    "smollm2": lambda: byte_level(digits=True),
}


def saved(tokenizer: Tokenizer, folder: Path) -> Path:
    """A folder with the tokenizer's file."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
