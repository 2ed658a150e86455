"""The tokenizer of a GGUF file: what transformers rebuilds of it, read as the file says.

transformers takes the vocabulary and the merges. Two things it leaves open, and both change ids of digits, apostrophes
and runs of spaces: by which regular expression text is cut (``tokenizer.ggml.pre``), and whether a SentencePiece
vocabulary puts a space before a text. What cannot be restored is noted, and said when the donor is opened.
"""

import heapq
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memgraft.system import write_beside
from memgraft.tokenizer.mapping import model_vocabulary
from memgraft.tokenizer.probe import PROBE_TEXTS

NOTE_NAME = "memgraft-tokenizer.json"
"""What the conversion found out about the tokenizer."""
RULE = 2
"""To be raised with what is restored, so that folders converted before are looked at again."""

_GPT2 = (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",)
_DIGITS = (r"\p{N}", *_GPT2)
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _TAIL,)
_LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _TAIL,)
_FALCON = (r"[\p{P}\$\+<=>\^~\|`]+", *_GPT2, r"[0-9][0-9][0-9]")
_CJK = r"[一-龥ࠀ-一가-퟿]+"
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}")

# The names of llama.cpp (`tokenizer.ggml.pre`) and the regular expressions that it cuts by, one after another.
CUTS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("gpt-2", "gpt2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling"), _GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), _DIGITS),
    **dict.fromkeys(("qwen2", "stablelm2", "deepseek-r1-qwen", "megrez", "hunyuan", "kormo"), _QWEN2),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "lfm2"), _LLAMA3),
    **dict.fromkeys(("smaug-bpe", "dbrx", "chatglm-bpe", "glm4"), _LLAMA3),
    "falcon": _FALCON,
    "deepseek-coder": _DEEPSEEK_CODER,
}
# transformers cuts by these itself.
_RIGHT_ALREADY = ("tekken", "gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2", "qwen35")
_WAY_OUT = "a transformers folder with the model's own tokenizer.json reads them right"


def restore_tokenizer(path: Path, folder: Path) -> None:
    """Gives the folder's ``tokenizer.json`` what the GGUF says of it, and notes what could not be restored."""
    import gguf

    reader = gguf.GGUFReader(path)

    def fact(name: str) -> Any:
        field = reader.fields.get(name)
        return None if field is None else field.contents()

    kind, cut, family = fact("tokenizer.ggml.model"), fact("tokenizer.ggml.pre"), str(fact("general.architecture"))
    file = folder / "tokenizer.json"
    facts = json.loads(file.read_text(encoding="utf-8"))
    lost = []
    if kind == "gpt2" and cut in CUTS:
        facts["pre_tokenizer"] = pre_tokenizer(CUTS[cut])
        if CUTS[cut] == _LLAMA3:
            facts["model"]["ignore_merges"] = True
        if CUTS[cut] == _QWEN2:
            facts["normalizer"] = {"type": "NFC"}
    elif kind == "gpt2" and cut not in _RIGHT_ALREADY:
        lost.append(_unknown_cut(facts, cut))
    elif kind == "llama":
        gemma = family.startswith("gemma")
        if not gemma:
            facts |= spaced(prefix=fact("tokenizer.ggml.add_space_prefix") is not False)
        # Gemma's merges follow the order of its tokens, not their scores.
        scores = None if gemma else fact("tokenizer.ggml.scores")
        lost += _unlike_sentencepiece(facts, scores)
    elif kind == "t5" and fact("tokenizer.ggml.precompiled_charsmap") is not None:
        lost.append(
            "its Unigram vocabulary comes with a table that normalises text (precompiled_charsmap), which is not "
            f"applied; the ids of full-width, composed and other compatible letters may be other ones; {_WAY_OUT}"
        )
    write_beside(file, json.dumps(facts, ensure_ascii=False).encode())
    note = {"model": kind, "pre": cut, "rule": RULE, "lost": lost}
    write_beside(folder / NOTE_NAME, json.dumps(note, indent=1).encode())


def pre_tokenizer(cut: Sequence[str]) -> dict[str, Any]:
    """The serialised pre-tokenizer of the regular expressions of `CUTS`, before a byte level."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": cut in (_GPT2, _DIGITS)}
    if cut == _GPT2:
        return level
    if cut == _DIGITS:
        first: list[dict[str, Any]] = [{"type": "Digits", "individual_digits": True}]
    else:
        first = [{"type": "Split", "pattern": {"Regex": each}, "behavior": "Isolated", "invert": False} for each in cut]
    return {"type": "Sequence", "pretokenizers": [*first, level]}


def spaced(*, prefix: bool) -> dict[str, Any]:
    """Normaliser and pre-tokenizer of a SentencePiece vocabulary, as Llama 2's file has them."""
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    normalizers = [{"type": "Prepend", "prepend": "▁"}, replace] if prefix else [replace]
    return {"normalizer": {"type": "Sequence", "normalizers": normalizers}, "pre_tokenizer": None}


def _unknown_cut(facts: Mapping[str, Any], cut: Any) -> str:
    """What is said of a cut that is not in the table, with the probes whose ids depend on which known one is taken."""
    from tokenizers import Tokenizer

    read = []
    for known in dict.fromkeys(CUTS.values()):
        tokenizer = Tokenizer.from_str(json.dumps({**facts, "pre_tokenizer": pre_tokenizer(known)}))
        read.append([tokenizer.encode(text, add_special_tokens=False).ids for text in _PROBES])
    changed = [text for place, text in enumerate(_PROBES) if any(ids[place] != read[0][place] for ids in read)]
    of = f"the ids of {changed} depend on it and" if changed else "ids of digits, apostrophes and runs of spaces"
    return (
        f"its file names the cut {cut!r}, which is not known here; {of} may be other ones than the donor was trained "
        f"on; {_WAY_OUT}"
    )


_PROBES = ("year 2024 and 12345678", "it's I'LL don't WE'VE", "a  b    c        d", "x\n\n  y \n z")


def _unlike_sentencepiece(facts: Mapping[str, Any], scores: Sequence[float] | None) -> list[str]:
    """What is said where merges derived from the vocabulary read a probe otherwise than its scores do."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(json.dumps(facts))
    ids = dict(model_vocabulary(facts["model"]))
    ranks = [-float(place) for place in range(len(ids))] if scores is None else scores
    # They are matched whole before the model sees the text.
    added = [token["content"] for token in facts.get("added_tokens") or ()]
    probes = [text for text in PROBE_TEXTS if not any(token in text for token in added)]
    changed = []
    for text in probes:
        normal = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer is not None else text
        found = tokenizer.encode(text, add_special_tokens=False).ids
        if found != by_scores(normal, ids, ranks, unknown=facts["model"].get("unk_token")):
            changed.append(text)
    if not changed:
        return []
    return [
        f"its SentencePiece vocabulary is read by merges that are derived from it; they give {len(changed)} of "
        f"{len(probes)} probes, the first {changed[0][:40]!r}, other ids than its scores do; {_WAY_OUT}"
    ]


def by_scores(text: str, ids: Mapping[str, int], scores: Sequence[float], unknown: str | None = None) -> list[int]:
    """The ids that SentencePiece gives a normalised text: the best-scored pair of neighbours joined, again and again.

    The plain rule, to compare with; ties go to the left. What is no token is spelled in bytes, or is ``unknown``.

    Source: llama.cpp, ``llm_tokenizer_spm``.
    """
    pieces: list[str | None] = list(text)
    after = list(range(1, len(pieces) + 1))
    before = list(range(-1, len(pieces) - 1))
    queue: list[tuple[float, int, int, str]] = []

    def offer(left: int) -> None:
        right = after[left] if left >= 0 else len(pieces)
        if right < len(pieces):
            joined = f"{pieces[left]}{pieces[right]}"
            if joined in ids:
                heapq.heappush(queue, (-scores[ids[joined]], left, right, joined))

    for place in range(len(pieces)):
        offer(place)
    while queue:
        _, left, right, joined = heapq.heappop(queue)
        one, other = pieces[left], pieces[right]
        if one is None or other is None or after[left] != right or one + other != joined:
            continue
        pieces[left], pieces[right] = joined, None
        after[left] = after[right]
        if after[left] < len(pieces):
            before[after[left]] = left
        offer(before[left])
        offer(left)
    found: list[int] = []
    for piece in pieces:
        if piece is None:
            continue
        if piece in ids:
            found.append(ids[piece])
            continue
        spelled = [ids.get(f"<0x{byte:02X}>") for byte in piece.encode("utf-8", "surrogatepass")]
        if None not in spelled:
            found += [token for token in spelled if token is not None]
        elif unknown is not None and unknown in ids and found[-1:] != [ids[unknown]]:  # one for a run of them
            found.append(ids[unknown])
    return found
