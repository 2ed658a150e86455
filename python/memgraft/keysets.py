"""Key sets against each other: which keys one has of another, union, intersection, difference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memgraft.corpus.sample import CorpusSample, corpora_of_all, joint_sample, sample_of
from memgraft.errors import ArgumentError, FingerprintError
from memgraft.index import NgramIndex
from memgraft.keyset import KeySet
from memgraft.tokenizer import facts_of_keys, other_mapping

__all__ = ["check_same_tokens", "intersect", "joined", "rows_in", "subtract", "union"]

_CHUNK = 1 << 20


def rows_in(keys: KeySet, index: NgramIndex, *, threads: int | None = None) -> NDArray[np.int32]:
    """The row that each key of ``keys`` has in ``index``, int32 ``(len(keys),)``; -1 where it is no key there."""
    found = np.full(len(keys), -1, np.int32)
    for start in range(0, len(keys), _CHUNK):
        arrays = keys.arrays(start, min(start + _CHUNK, len(keys)))
        # Each key is a segment: the match at its end is the key itself where it is as long.
        rows, orders = index.lookup(arrays.tokens, cu_seqlens=arrays.offsets, threads=threads, unknown="miss")
        last = arrays.offsets[1:].astype(np.int64) - 1
        whole = orders[last] == np.diff(arrays.offsets.astype(np.int64))
        found[start : start + len(last)] = np.where(whole, rows[last], -1)
    return found


def check_same_tokens(sets: Sequence[KeySet]) -> None:
    """Refuses key sets whose token ids do not mean the same.

    Raises:
        ArgumentError: vocabularies of different sizes, or no key set.
        FingerprintError: their metadata name different tokenizers.
    """
    if not sets:
        raise ArgumentError("keys: expected at least one key set, got none")
    for keys in sets[1:]:
        if keys.vocab_size != sets[0].vocab_size:
            raise ArgumentError(
                f"{keys.path or 'keys'}: expected the vocabulary of {sets[0].vocab_size} as in "
                f"{sets[0].path or 'the first set'}, found {keys.vocab_size}; mine both with one tokenizer"
            )
    named = [(keys, facts_of_keys(keys.metadata)) for keys in sets]
    named = [(keys, facts) for keys, facts in named if facts != facts_of_keys({})]
    for keys, facts in named[1:]:
        first, expected = named[0]
        if other_mapping(expected, facts):
            raise FingerprintError(
                f"{keys.path or 'keys'}: expected tokens of the tokenizer {expected['file_fingerprint']} as in "
                f"{first.path or 'the first set'}, found {facts['file_fingerprint']}; mine both with one tokenizer"
            )


def union(sets: Sequence[KeySet]) -> KeySet:
    """Every key of any of ``sets``; counts add up, and so do documents where all that have the key counted them.

    Raises:
        ArgumentError: vocabularies of different sizes, or no key set.
        FingerprintError: sets of different tokenizers.
    """
    check_same_tokens(sets)
    joint = sets[0]
    for keys in sets[1:]:
        joint = _union(joint, keys)
    return joint.with_metadata(_metadata("union", sets)).with_sample(_bytes(joint_sample(sets)))


def _union(a: KeySet, b: KeySet) -> KeySet:
    there = rows_in(b, NgramIndex.build(a))
    mine, theirs = a.arrays(), b.arrays()
    counts, documents = mine.counts.copy(), mine.documents.copy()
    both, at = there >= 0, there[there >= 0]
    counts[at] += theirs.counts[both]
    known = (documents[at] > 0) & (theirs.documents[both] > 0)
    documents[at] = np.where(known, documents[at] + theirs.documents[both], 0)
    fresh = b.select(~both).arrays()
    return KeySet.from_arrays(
        np.concatenate([mine.tokens, fresh.tokens]),
        np.concatenate([mine.offsets, mine.offsets[-1] + fresh.offsets[1:]]),
        np.concatenate([counts, fresh.counts]),
        np.concatenate([documents, fresh.documents]),
        vocab_size=a.vocab_size,
        reserved=sorted(set(a.reserved) & set(b.reserved)),
    )


def intersect(sets: Sequence[KeySet]) -> KeySet:
    """The keys of the first set that all others have too, with the first set's counts; raises as `union`."""
    return joined(sets, "intersect", lambda here: here)


def subtract(sets: Sequence[KeySet]) -> KeySet:
    """The keys of the first set that no other has, with their counts; raises as `union`."""
    return joined(sets, "subtract", lambda here: ~here)


def joined(sets: Sequence[KeySet], name: str, keeps: Callable[[NDArray[np.bool_]], NDArray[np.bool_]]) -> KeySet:
    """The keys of the first set that ``keeps`` keeps, told for each other set which keys it has; raises as `union`."""
    check_same_tokens(sets)
    mask = np.ones(len(sets[0]), np.bool_)
    for keys in sets[1:]:
        mask &= keeps(rows_in(sets[0], NgramIndex.build(keys)) >= 0)
    # What the others only restrict is mined from the first.
    return sets[0].select(mask).with_metadata(_metadata(name, sets)).with_sample(_bytes(sample_of(sets[0])))


def _bytes(sample: CorpusSample | None) -> bytes | None:
    return None if sample is None else sample.to_bytes()


def _metadata(name: str, sets: Sequence[KeySet]) -> dict[str, Any]:
    """What the result's metadata say: those of the first set, and which sets it was made of."""
    of = [{"fingerprint": keys.fingerprint, "corpus": keys.metadata.get("corpus")} for keys in sets]
    metadata = {**sets[0].metadata, "made_by": {"operation": name, "of": of}}
    if name == "union":
        metadata["corpora"] = corpora_of_all([keys.metadata for keys in sets])
    return metadata
