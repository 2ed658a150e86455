"""What stands before every key in the donor: the same neutral tokens for a whole bank (docs/METHOD.md, section 2).

A decoder's state at its first position hardly depends on the token there (the attention sink), so that all keys of one
donor token would get nearly one value. Which tokens in front help differs between donors; a small probe measures it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from memgraft.errors import ArgumentError
from memgraft.harvesting.donor import Donor
from memgraft.harvesting.forward import donor_values

PrefixChoice = str | Sequence[int] | None
"""``"auto"``, ``"none"`` or None, ``"bos"``, any other text, or donor token ids."""

# Common words of many languages: a donor knows most of them as one token.
_WORDS = (
    "the king water house blue run paper music cat tree time car book fire small night world green stone city "
    "mother river black school power field letter white horse garden de la que der die und una los est pour"
)
_PROBE_WORDS = _WORDS.split()
_MIN_PROBE = 8
_MARGIN = 0.02
"""A later candidate must be this much better than an earlier one, so that rounding does not choose."""
_SEPARATORS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eot_id|>")


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """Donor tokens that stand before every key."""

    name: str
    """What it is called: ``none``, ``bos``, ``newline``, ``text`` …"""
    ids: tuple[int, ...]
    chosen: str
    """``"auto"`` where a probe chose it, else ``"given"``."""
    probe: dict[str, float] | None = None
    """Mean cosine of the probe's words by candidate."""

    def facts(self) -> dict[str, Any]:
        """What a harvest's settings, and so ``bank.json``, say about it."""
        return {
            "prefix": list(self.ids),
            "prefix_name": self.name,
            "prefix_chosen": self.chosen,
            "prefix_probe": self.probe,
        }


def find_prefix(
    donor: Donor,
    asked: PrefixChoice,
    *,
    taps: Sequence[int],
    prepend_bos: bool = False,
    recorded: Mapping[str, Any] | None = None,
) -> Prefix:
    """The prefix that is asked for, or, for ``"auto"``, the one under which words of one token differ most.

    Args:
        donor: the open donor.
        asked: see `PrefixChoice`.
        taps: checked donor depths, at which ``"auto"`` measures.
        prepend_bos: put the donor's BOS first; ``"auto"`` then stands for ``"bos"``.
        recorded: donor facts of the bank that is taken up. What a probe chose there, it does not choose again: another
            machine's rounding might choose otherwise.

    Raises:
        ArgumentError: the donor has no BOS, cannot read the text, or has no such ids.
    """
    if asked == "auto" and not prepend_bos:
        before = recorded or {}
        if before.get("prefix_chosen") == "auto" and before.get("fingerprint") == donor.fingerprint:
            ids, probe = tuple(before["prefix"]), before.get("prefix_probe")
            return Prefix(name=before["prefix_name"], ids=ids, chosen="auto", probe=probe)
        return _measured(donor, taps)
    if (asked == "bos" or prepend_bos) and donor.bos is None:
        raise ArgumentError(
            f"{'prepend_bos' if prepend_bos else 'prefix bos'}: the tokenizer of donor {donor.name} has no BOS token; "
            "leave it off"
        )
    head = (donor.bos,) if prepend_bos and donor.bos is not None else ()
    name, ids = _given(donor, "none" if asked == "auto" else asked)
    if head and ids[:1] != head:
        name, ids = ("bos" if name == "none" else f"bos+{name}"), head + ids
    return Prefix(name=name, ids=ids, chosen="given")


def _given(donor: Donor, asked: PrefixChoice) -> tuple[str, tuple[int, ...]]:
    if asked is None or asked == "none":
        return "none", ()
    if asked == "bos":
        return "bos", (int(donor.bos),) if donor.bos is not None else ()
    if isinstance(asked, str):
        ids = tuple(donor.tokenizer.encode([asked])[0])
        if not ids or (donor.tokenizer.unknown is not None and donor.tokenizer.unknown in ids):
            raise ArgumentError(f"prefix {asked!r}: the tokenizer of donor {donor.name} makes no tokens of this text")
        return "text", _inside(donor, ids, asked)
    try:
        ids = tuple(int(token) for token in asked)
    except (TypeError, ValueError):
        raise ArgumentError(f"prefix {asked!r}: expected auto, none, bos, text or donor token ids") from None
    # A probe's choice is handed on as ids; it is still called what it is.
    called = {known: name for name, known in candidates(donor).items()}
    return called.get(ids, "ids"), _inside(donor, ids, asked)


def _inside(donor: Donor, ids: tuple[int, ...], asked: Any) -> tuple[int, ...]:
    if strange := [token for token in ids if not 0 <= token < donor.vocab_size]:
        raise ArgumentError(
            f"prefix {asked!r}: donor {donor.name} has ids 0 to {donor.vocab_size - 1}, found {strange[0]}"
        )
    return ids


def candidates(donor: Donor) -> dict[str, tuple[int, ...]]:
    """Prefixes worth measuring, distinct, the simplest first."""
    codec = donor.tokenizer
    found: dict[str, tuple[int, ...]] = {"none": ()}
    bos = () if donor.bos is None else (donor.bos,)
    special = next((token for name in _SEPARATORS if (token := codec.token_id(name)) is not None), None)
    texts = {name: tuple(codec.encode([text])[0]) for name, text in (("newline", "\n"), ("the", " the"), ("stop", "."))}
    found["bos"] = bos
    if special is not None:
        found["separator"] = (special,)
    found |= texts
    if bos:
        found |= {f"bos+{name}": bos + ids for name, ids in texts.items() if ids}
    usable: dict[str, tuple[int, ...]] = {}
    for name, ids in found.items():
        known = all(0 <= token < donor.vocab_size and token != codec.unknown for token in ids)
        if known and (ids or name == "none") and ids not in usable.values():
            usable[name] = ids
    return usable


def probe_tokens(donor: Donor) -> list[int]:
    """Distinct tokens of one word each; where the donor knows too few, tokens from all over its vocabulary."""
    texts = [shape.format(word) for shape in (" {}", "{}") for word in _PROBE_WORDS]
    found = [ids[0] for ids in donor.tokenizer.encode(texts) if len(ids) == 1 and ids[0] != donor.tokenizer.unknown]
    tokens = [token for token in dict.fromkeys(found) if token < donor.vocab_size][: len(_PROBE_WORDS)]
    if len(tokens) < _MIN_PROBE:
        known = [token for token in donor.tokenizer.known.nonzero()[0].tolist() if token < donor.vocab_size]
        tokens = list(dict.fromkeys([*tokens, *known[:: max(1, len(known) // 32)]]))[: len(_PROBE_WORDS)]
    return tokens


def mean_cosine(states_NV: torch.Tensor) -> float:
    """Mean cosine of all pairs of different rows; 0 for fewer than two."""
    num_rows = len(states_NV)
    if num_rows < 2:
        return 0.0
    unit_NV = torch.nn.functional.normalize(states_NV.double(), dim=1)
    return float((unit_NV.sum(0).square().sum() - num_rows) / (num_rows * (num_rows - 1)))


def _measured(donor: Donor, taps: Sequence[int]) -> Prefix:
    options, words = candidates(donor), probe_tokens(donor)
    keys = [[*ids, word] for ids in options.values() for word in words]
    values = donor_values(donor, tuple(taps), keys, max_tokens=1024)
    values_CNKV = values.view(len(options), len(words), *values.shape[1:])
    # Tap 0 reads the embeddings, which nothing in front changes; it would only blur the difference.
    deep = [place for place, tap in enumerate(taps) if tap > 0] or [0]
    cosines = {
        name: round(sum(mean_cosine(values_NKV[:, place]) for place in deep) / len(deep), 4)
        for name, values_NKV in zip(options, values_CNKV, strict=True)
    }
    best = min(cosines.values())
    name = next(name for name, cosine in cosines.items() if cosine <= best + _MARGIN)
    return Prefix(name=name, ids=options[name], chosen="auto", probe=cosines)
