"""What a batch, an example, a table or a dataset may say about boundaries: one list, one meaning for each entry.

=========  ========================================================  =================================================
kind       names                                                     meaning
=========  ========================================================  =================================================
mask       ``attention_mask``                                        0 is padding; other numbers name documents
positions  ``position_ids``, ``input_pos``                           a document starts where a position is not the one
                                                                     before plus 1
edges      ``cu_seq_lens_q``, ``cu_seqlens``, their spellings        documents lie between neighbouring edges; what
                                                                     follows the last edge is padding
lengths    ``seq_lengths`` (TRL), ``seq_lens`` (torchtune)           lengths of the documents, which fill the row or its
                                                                     part that is not padding
numbers    ``seq_idx``, ``segment_ids``, ``segments``,               a document starts where the number changes;
           ``document_ids``, their spellings                         negative is padding
starts     ``seq_start_id`` (NeMo)                                   places where documents start, the first at 0
=========  ========================================================  =================================================

There is no precedence, because all that is said holds: a document starts where anything says so, and padding is what
anything calls padding. A name that looks like one of these and is not in the list is refused, and so is a value that
cannot be read. One thing gives way: a mask of more than two dimensions that cannot be read counts for nothing where
something else in the list says where documents start (see `memgraft.data.masks`).

This half needs numpy alone and reads rows of columns; `memgraft.data.segments` reads batches of tensors.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from memgraft.errors import ArgumentError

Kind = Literal["mask", "positions", "edges", "lengths", "numbers", "starts"]

MARKS: Mapping[str, Kind] = {
    "attention_mask": "mask",
    "position_ids": "positions",
    "input_pos": "positions",
    "cu_seq_lens_q": "edges",
    "cu_seq_lens_k": "edges",
    "cu_seq_lens": "edges",
    "cu_seqlens_q": "edges",
    "cu_seqlens_k": "edges",
    "cu_seqlens_kv": "edges",
    "cu_seqlens": "edges",
    "cu_seqlen": "edges",
    "seq_lengths": "lengths",
    "seq_lens": "lengths",
    "sequence_lengths": "lengths",
    "seq_idx": "numbers",
    "segment_ids": "numbers",
    "segments": "numbers",
    "sequence_ids": "numbers",
    "document_ids": "numbers",
    "document_id": "numbers",
    "doc_ids": "numbers",
    "doc_id": "numbers",
    "seq_start_id": "starts",
}
"""Every name that is understood, and how."""
RAGGED: frozenset[Kind] = frozenset({"edges", "lengths", "starts"})
"""Kinds of which a row has as many numbers as documents: no collator can stack them."""
LONGEST = ("max_length_q", "max_length_k", "max_seqlen", "max_seqlen_q", "max_seqlen_k")
"""Lengths of the longest document; edges with a longer one contradict them."""

_LOOKS_LIKE_ONE = re.compile(
    r"cu_?seq|seq_?(len|id|start|bound)|sequence_?(len|id|start|bound)|(^|_)(segment|packed)|doc(ument)?_?(id|mask|start|end|bound|len)"
    r"|padding_mask|block_mask|(^|_)boundar|^position_?id|cu_?len|(^|_)eod_?(mask|id|pos)|^attn_(mask|bias)|attention_bias"
    r"|(^|_)(sample|pack|packing)_?(ids|idx|indices|mask|len)"
)

Starts = npt.NDArray[np.bool_]


def unread_names(names: Iterable[str]) -> list[str]:
    """Those of ``names`` that look as if they spoke about boundaries and are not in the list."""
    return [
        name
        for name in names
        if name not in MARKS and name not in LONGEST and _LOOKS_LIKE_ONE.search(name.lower()) is not None
    ]


def refuse_unread(names: Iterable[str], where: str) -> None:
    """Refuses names that look as if they spoke about boundaries and are not in the list.

    Raises:
        ArgumentError: there is one.
    """
    if unread := unread_names(names):
        raise ArgumentError(
            f"{where}: {', '.join(unread)} may say where documents start, and is none of {', '.join(MARKS)}; rename it "
            "to the one that it means, or drop it"
        )


def read_rows(
    row_lengths: npt.NDArray[np.int64], columns: Mapping[str, tuple[npt.NDArray[np.integer], npt.NDArray[np.int64]]]
) -> tuple[Starts, Starts]:
    """Where documents start inside rows, and what is padding, from all columns in the list.

    Args:
        row_lengths: ``(R,)`` tokens of each row; N in all.
        columns: by name, the values of all rows one after another, and ``(R,)`` how many of them each row has.

    Returns:
        Bool ``(N,)``: a document or padding starts here (set at the first token of every row); and bool ``(N,)``:
        the token is not padding.

    Raises:
        ArgumentError: a column's name is not in the list, or its values contradict the rows.
    """
    refuse_unread(columns, "columns")
    total = int(row_lengths.sum())
    firsts = np.cumsum(row_lengths) - row_lengths
    starts = np.zeros(total, np.bool_)
    starts[firsts[row_lengths > 0]] = True
    kept = np.ones(total, np.bool_)
    # Lengths are laid where the others have left tokens: they come last.
    for name in sorted(columns, key=lambda name: MARKS[name] == "lengths"):
        values, sizes = columns[name]
        kind = MARKS[name]
        if kind in ("mask", "positions", "numbers"):
            if not np.array_equal(sizes, row_lengths):
                raise ArgumentError(f"rows of {name!r}: expected as long as those of the tokens, found other lengths")
            _read_tokens(name, kind, values, starts, kept)
        elif kind == "lengths":
            _read_lengths(name, values, sizes, row_lengths, starts, kept)
        else:
            ends = np.cumsum(sizes)
            for row, (size, end) in enumerate(zip(sizes.tolist(), ends.tolist(), strict=True)):
                length, first = int(row_lengths[row]), int(firsts[row])
                edges = _check_edges(name, kind, values[end - size : end].astype(np.int64), length)
                starts[first + edges[edges < length]] = True
                if kind == "edges":
                    kept[first + int(edges[-1]) : first + length] = False
    return starts, kept


def _read_tokens(name: str, kind: Kind, values: npt.NDArray[np.integer], starts: Starts, kept: Starts) -> None:
    # Unsigned numbers would wrap round.
    numbers = values.astype(np.int64)
    if kind == "positions":
        starts[1:] |= numbers[1:] != numbers[:-1] + 1
        return
    starts[1:] |= numbers[1:] != numbers[:-1]
    if kind == "numbers":
        kept &= numbers >= 0
        return
    if numbers.size and int(numbers.min()) < 0:
        raise ArgumentError(f"{name}: expected 0 for padding and numbers of documents, found {int(numbers.min())}")
    kept &= numbers != 0


def _read_lengths(
    name: str,
    values: npt.NDArray[np.integer],
    sizes: npt.NDArray[np.int64],
    row_lengths: npt.NDArray[np.int64],
    starts: Starts,
    kept: Starts,
) -> None:
    lengths = values.astype(np.int64)
    if lengths.size and int(lengths.min()) < 0:
        raise ArgumentError(f"{name}: expected lengths of documents, found {int(lengths.min())}")
    before = np.concatenate([[0], np.cumsum(lengths)])
    said = np.diff(before[np.concatenate([[0], np.cumsum(sizes)])])
    # Lengths fill the whole row, or its part that is not padding.
    laid = kept | np.repeat(said == row_lengths, row_lengths)
    room = np.diff(np.concatenate([[0], np.cumsum(laid)])[np.concatenate([[0], np.cumsum(row_lengths)])])
    if (wrong := said != room).any():
        row = int(np.argmax(wrong))
        raise ArgumentError(
            f"{name} of row {row}: expected lengths that sum to its {int(row_lengths[row])} tokens, found "
            f"{int(said[row])}; the row was cut or padded after it was packed"
        )
    starts[np.flatnonzero(laid)[before[:-1][lengths > 0]]] = True


def _check_edges(name: str, kind: Kind, edges: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.int64]:
    if not edges.size or edges[0] != 0 or edges[-1] > length or (edges[1:] < edges[:-1]).any():
        raise ArgumentError(f"{name}: expected {kind} ascending from 0 to at most {length}, found {edges.tolist()}")
    return edges


def example_numbers(name: str, values: Sequence[int], length: int) -> npt.NDArray[np.int64] | None:
    """The document number of each token of one example, from what one entry of the list says of it; padding is -1.

    Args:
        name: the entry.
        values: what the example has under that name.
        length: tokens of the example.

    Returns:
        ``(length,)``, or None where the entry calls the whole example one document.

    Raises:
        ArgumentError: the values contradict the example.
    """
    flat = np.asarray(values)
    if flat.ndim == 0:
        return None  # one number for the whole example
    if flat.dtype.kind not in "iub" or flat.ndim != 1:
        raise ArgumentError(f"{name}: expected whole numbers in one dimension, found {flat.dtype} {flat.shape}")
    starts, kept = read_rows(np.array([length]), {name: (flat.astype(np.int64), np.array([flat.size]))})
    if kept.all() and not starts[1:].any():
        return None
    return np.where(kept, np.cumsum(starts) - 1, -1)
