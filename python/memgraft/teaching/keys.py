"""Keys for statements: the ends of prompts, from the longest down to the shortest that matches nothing else."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from memgraft.config import MAX_ORDER
from memgraft.corpus import Corpus
from memgraft.corpus.blocks import documents_in_blocks
from memgraft.errors import ArgumentError
from memgraft.index import NgramIndex
from memgraft.keyset import KeySet
from memgraft.teaching.facts import Spoken

Key = tuple[int, ...]


@dataclass(frozen=True)
class Chosen:
    """Keys of the statements.

    Attributes:
        keys: the new keys, their counts those in the statements.
        slots: place of each key's value by row, int64 ``(len(keys),)``: keys that end at one place share it.
        num_slots: places: one for each distinct context that a token of a completion follows.
        first_keys: the longest key of each place.
        neutral_hits: for keys that neutral text has, how often, by key.
        neutral_tokens: tokens of neutral text that were read.
    """

    keys: KeySet
    slots: np.ndarray
    num_slots: int
    first_keys: list[Key]
    neutral_hits: dict[Key, int]
    neutral_tokens: int


def choose_keys(
    statements: Sequence[Spoken],
    neutral: Corpus,
    *,
    min_order: int,
    base_order: int,
    neutral_tokens: int,
    vocab_size: int,
    reserved: Sequence[int],
    metadata: Mapping[str, Any],
) -> Chosen:
    """Chooses the keys of ``statements``.

    At each place the longest end of what was said so far is a key, of up to 16 tokens. Shorter ends, which reworded
    prompts share, are keys too as long as nothing else matches them: neither neutral text nor a place in a statement
    that goes on differently. Of these the shortest is taken, and those that a key of the base could hide.

    Args:
        statements: prompts and completions.
        neutral: text that must not change.
        min_order: the shortest end that may become a key besides the longest.
        base_order: the longest key of the base.
        neutral_tokens: tokens of ``neutral`` to look at.
        vocab_size: of the base's keys.
        reserved: tokens that no key may hold.
        metadata: of the new key set.

    Raises:
        ArgumentError: two statements cannot be told apart by 16 tokens, or a place has no token that a key may hold.
    """
    unusable = frozenset(reserved)
    places = _places(statements, unusable, vocab_size)
    others: dict[Key, set[int]] = defaultdict(set)
    for statement in statements:
        for position in range(len(statement.ids)):
            for end in _ends(statement.ids[: position + 1], unusable, vocab_size):
                others[end].add(statement.ids[position + 1] if position in statement.targets else -1)
    candidates = dict.fromkeys(end for longest in places for end in _ends(longest, unusable, vocab_size))
    hits, num_read = _count(list(candidates), neutral, neutral_tokens, vocab_size)
    slot_of = {longest: slot for slot, longest in enumerate(places)}
    for slot, longest in enumerate(places):
        clean = []
        for end in _ends(longest, unusable, vocab_size):
            if end == longest:
                continue
            if len(end) < min_order or len(others[end]) > 1 or hits[end]:
                break
            clean.append(end)
        shortest = len(clean[-1]) if clean else 0
        for end in clean:
            if len(end) <= max(shortest, base_order):
                slot_of.setdefault(end, slot)
    counts = Counter(
        end
        for statement in statements
        for position in statement.targets
        for end in _ends(statement.ids[: position + 1], unusable, vocab_size)
        if end in slot_of
    )
    named = list(slot_of)
    keys = KeySet.from_keys(
        named, [counts[key] for key in named], vocab_size=vocab_size, reserved=sorted(unusable), metadata=metadata
    )
    slots = np.fromiter((slot_of[key] for key in keys), np.int64, len(keys))
    return Chosen(keys, slots, len(places), list(places), {key: hits[key] for key in named if hits[key]}, num_read)


def _places(statements: Sequence[Spoken], reserved: frozenset[int], vocab_size: int) -> dict[Key, int]:
    """The longest key of each place, and the token that follows there."""
    found: dict[Key, tuple[int, int]] = {}
    for statement in statements:
        for position in statement.targets:
            longest = next(_ends(statement.ids[: position + 1], reserved, vocab_size), None)
            token = statement.ids[position + 1]
            if longest is None:
                raise ArgumentError(
                    f"fact {statement.fact + 1}: token {statement.ids[position]}, after which it goes on with {token}, "
                    "may be in no key (a token that ends documents, or one added to the tokenizer later); leave it out"
                )
            before = found.setdefault(longest, (token, statement.fact))
            if before[0] != token:
                raise ArgumentError(
                    f"facts {before[1] + 1} and {statement.fact + 1}: the same {len(longest)} tokens go on with token "
                    f"{before[0]} and with {token}; a key has at most {MAX_ORDER} tokens: let the prompts differ "
                    "nearer to their ends"
                )
    return {key: token for key, (token, _) in found.items()}


def _ends(ids: Sequence[int], reserved: frozenset[int], vocab_size: int) -> Iterator[Key]:
    """The ends of ``ids`` that may be keys, longest first."""
    length = 0
    while length < min(len(ids), MAX_ORDER):
        token = ids[-length - 1]
        if token in reserved or token >= vocab_size:
            break
        length += 1
    for order in range(length, 0, -1):
        yield tuple(ids[len(ids) - order :])


def _count(candidates: list[Key], corpus: Corpus, most: int, vocab_size: int) -> tuple[Counter[Key], int]:
    """How often each candidate stands in the first ``most`` tokens of ``corpus``, and the tokens read."""
    keys = KeySet.from_keys(candidates, vocab_size=vocab_size)
    index = NgramIndex.build(keys)
    by_row = np.zeros(len(keys), np.int64)
    num_read = 0
    for tokens, edges in blocks(corpus, most):
        rows, _ = index.lookup(tokens, cu_seqlens=edges, unknown="miss")
        by_row += np.bincount(rows[rows >= 0], minlength=len(keys))
        num_read += len(tokens)
    found: Counter[Key] = Counter()
    known = set(candidates)
    for row in np.flatnonzero(by_row):
        # A lookup tells the longest match; its ends match there too.
        key = keys.key(int(row))
        for start in range(len(key)):
            if key[start:] in known:
                found[key[start:]] += int(by_row[row])
    return found, num_read


def blocks(corpus: Corpus, most: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Whole documents of ``corpus`` in blocks: tokens and the edges between documents; the last document may be cut."""
    for edges in documents_in_blocks(corpus):
        edges = np.minimum(edges, most)
        if edges[-1] > edges[0]:
            yield corpus.tokens(int(edges[0]), int(edges[-1])), (edges - edges[0]).astype(np.uint64)
        if edges[-1] >= most:
            return
