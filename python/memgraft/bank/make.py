"""Banks made of banks: merged, without another's keys, cut to the most frequent rows."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from memgraft.bank.bank import Bank
from memgraft.bank.dtypes import value_dtype
from memgraft.bank.extras import tokenizer_files
from memgraft.bank.overlay import Where
from memgraft.bank.provenance import Origins, sources_of
from memgraft.bank.writer import BankWriter
from memgraft.corpus.sample import corpora_of, sample_of
from memgraft.errors import ArgumentError
from memgraft.keyset import KeySet
from memgraft.keysets import rows_in
from memgraft.progress import Progress, callback

__all__ = ["merge", "subtract", "truncate"]

Path_ = str | os.PathLike[str]
_WRITE_BYTES = 64 << 20
_KEPT = ("tokenizer", "tokenizer_mapping", "split")
"""What the metadata of all keys say."""


def merge(banks: Where, out: Path_, *, progress: Progress | bool | None = None) -> Bank:
    """Writes one bank that answers as the stack of ``banks`` does, its rows in order of count.

    A key that several banks have keeps the last bank's value and gets the sum of the counts. `Bank.origin_of` still
    tells which bank, corpus and donor a row comes from.

    Raises:
        ArgumentError: fewer than two banks, or ``out`` exists.
        FingerprintError: the banks do not fit together.
        StorageError: the disk refused.
    """
    progress = callback(progress)
    stack = Bank.open(banks)
    if len(stack.layers) < 2:
        raise ArgumentError(f"banks: expected two or more to merge, got {len(stack.layers)}")
    winners = rows_in(stack.keys, stack.index)
    arrays = stack.keys.arrays()
    counts = np.zeros(len(stack), np.uint64)
    np.add.at(counts, winners, arrays.counts)
    documents = np.zeros(len(stack), np.uint64)
    np.add.at(documents, winners, arrays.documents)
    # One bank that did not count documents makes the sum unknown.
    documents[winners[arrays.documents == 0]] = 0
    return _write(stack, winners == np.arange(len(stack)), out, counts, documents, progress)


def subtract(bank: Where, others: Where, out: Path_, *, progress: Progress | bool | None = None) -> Bank:
    """Writes the rows of ``bank`` whose keys none of ``others`` has; raises as `merge`, and where no row is left."""
    progress = callback(progress)
    stack, taken = Bank.open(bank), Bank.open(others)
    keep = (rows_in(stack.keys, taken.index) < 0) & _reachable(stack)
    return _write(stack, keep, out, None, None, progress)


def truncate(bank: Where, num_rows: int, out: Path_, *, progress: Progress | bool | None = None) -> Bank:
    """Writes the ``num_rows`` most frequent rows of ``bank``; raises as `merge`, and for more rows than there are."""
    progress = callback(progress)
    stack = Bank.open(bank)
    reachable = _reachable(stack)
    if not 1 <= num_rows <= int(reachable.sum()):
        raise ArgumentError(f"num_rows: expected 1 to {int(reachable.sum())}, got {num_rows}")
    kept = _select(stack, reachable, None, None)
    rows = rows_in(kept, stack.index)[:num_rows]
    keep = np.zeros(len(stack), np.bool_)
    keep[rows] = True
    return _write(stack, keep, out, None, None, progress)


def _reachable(stack: Bank) -> npt.NDArray[np.bool_]:
    """The rows that a lookup can answer: of a key that several banks have, the last one's."""
    mask: npt.NDArray[np.bool_] = rows_in(stack.keys, stack.index) == np.arange(len(stack))
    return mask


def _select(
    stack: Bank,
    keep: npt.NDArray[np.bool_],
    counts: npt.NDArray[np.uint64] | None,
    documents: npt.NDArray[np.uint64] | None,
) -> KeySet:
    """The keys of the kept rows as one set, sorted by count, with the sample of all that the stack was mined from."""
    arrays = stack.keys.arrays()
    lengths = np.diff(arrays.offsets).astype(np.int64)
    keys = KeySet.from_arrays(
        arrays.tokens[np.repeat(keep, lengths)],
        np.concatenate(([0], np.cumsum(lengths[keep]))).astype(np.uint64),
        (arrays.counts if counts is None else counts)[keep],
        (arrays.documents if documents is None else documents)[keep],
        vocab_size=stack.keys.vocab_size,
        reserved=stack.keys.reserved,
        metadata={
            **{name: stack.keys.metadata[name] for name in _KEPT if name in stack.keys.metadata},
            "corpora": corpora_of(stack.keys.metadata),
        },
    )
    sample = sample_of(stack.keys)
    return keys if sample is None else keys.with_sample(sample.to_bytes())


def _write(
    stack: Bank,
    keep: npt.NDArray[np.bool_],
    out: Path_,
    counts: npt.NDArray[np.uint64] | None,
    documents: npt.NDArray[np.uint64] | None,
    progress: Progress | None,
) -> Bank:
    if not keep.any():
        raise ArgumentError(f"{Path(out)}: expected at least one row to be left, found none of {len(stack)}")
    keys = _select(stack, keep, counts, documents)
    rows = rows_in(keys, stack.index)
    origins = Origins.of_rows(stack.layers, rows)
    scales = value_dtype(stack.dtype).scales
    writer = BankWriter(
        out,
        keys=keys,
        taps=stack.taps,
        value_dim=stack.value_dim,
        dtype=stack.dtype,
        donor=stack.manifest.donor,
        tokenizer=stack.manifest.tokenizer,
        scales=stack.scales(rows[:1]) if scales == "channel" else None,
    )
    with writer:
        step = max(1, _WRITE_BYTES // writer.row_bytes)
        for first, stop in writer.missing():
            for start in range(first, stop, step):
                part = rows[start : min(start + step, stop)]
                writer.write_stored(start, stack.values(part), stack.scales(part) if scales == "row" else None)
                if progress is not None:
                    progress("rows", start + len(part), len(rows))
        return writer.finish(corpus=_corpus(stack, origins), origins=origins, files=tokenizer_files(stack.paths))


def _corpus(stack: Bank, origins: Origins) -> dict[str, Any]:
    """What the rows were mined from: the one corpus, or the list of sources that rows name."""
    sources: Sequence[dict[str, Any]] = sources_of(stack.layers)
    first = dict(sources[0]["corpus"])
    return {**(first if len(sources) == 1 else {}), "sources": list(sources), "origins": origins.facts()}
