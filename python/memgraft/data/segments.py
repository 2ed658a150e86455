"""Segment ids ``(B, T)`` int32 from what training batches carry: look-back stops where they change; -1 is padding.

`memgraft.boundaries` lists what is understood; this is its half for batches of tensors.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from memgraft.arguments import token_id
from memgraft.boundaries import LONGEST, MARKS, RAGGED, example_numbers, unread_names
from memgraft.data.masks import PADDING, UnreadableMask, count, from_attention_mask, read_mask
from memgraft.errors import ArgumentError

__all__ = [
    "PADDING",
    "combine",
    "from_attention_mask",
    "from_batch",
    "from_columns",
    "from_cu_seqlens",
    "from_eos",
    "from_examples",
    "from_position_ids",
    "lay_out",
    "positions_in",
    "whole_rows",
]


def whole_rows(input_ids: torch.Tensor) -> torch.Tensor:
    """One segment per row of ``input_ids (B, T)``."""
    rows = torch.arange(input_ids.shape[0], dtype=torch.int32, device=input_ids.device)
    return rows[:, None].expand(input_ids.shape).contiguous()


def from_position_ids(position_ids: torch.Tensor) -> torch.Tensor:
    """A segment starts wherever the position is not the one before plus 1.

    Args:
        position_ids: ints ``(B, T)``.
    """
    _check_2d(position_ids, "position_ids")
    starts = torch.ones_like(position_ids, dtype=torch.bool)
    starts[:, 1:] = position_ids[:, 1:] != position_ids[:, :-1] + 1
    return count(starts)


def from_cu_seqlens(cu_seqlens: torch.Tensor, length: int) -> torch.Tensor:
    """Segments of one packed row of ``length`` tokens; what lies past the last edge is padding.

    Args:
        cu_seqlens: ints ``(S + 1,)``, ascending from 0.
        length: T.

    Raises:
        ArgumentError: edges descend or leave ``0..length``.
    """
    edges = cu_seqlens.reshape(-1).to(torch.int64)
    if edges.numel() < 1 or int(edges[0]) != 0 or int(edges[-1]) > length or bool((edges[1:] < edges[:-1]).any()):
        raise ArgumentError(f"cu_seqlens: expected edges ascending from 0 to at most {length}, found {edges.tolist()}")
    positions = torch.arange(length, device=edges.device)
    segments = torch.searchsorted(edges, positions, right=True).to(torch.int32) - 1
    segments[positions >= edges[-1]] = PADDING
    return segments[None]


def ending_ids(eos_id: int | Sequence[int]) -> tuple[int, ...]:
    """One end-of-segment token or several, as ints.

    Raises:
        ArgumentError: what is no token id.
    """
    several = eos_id if isinstance(eos_id, tuple | list | np.ndarray) else (eos_id,)
    return tuple(each if isinstance(each, int) else token_id("eos_id", each) for each in several)


def from_eos(input_ids: torch.Tensor, eos_id: int | Sequence[int]) -> torch.Tensor:
    """An EOS belongs to the segment it ends; the next position starts a new one.

    Args:
        input_ids: ints ``(B, T)``.
        eos_id: the end-of-segment token, or several.

    Raises:
        ArgumentError: what is no token id.
    """
    _check_2d(input_ids, "input_ids")
    starts = torch.ones_like(input_ids, dtype=torch.bool)
    starts[:, 1:] = False
    for ending in ending_ids(eos_id):
        starts[:, 1:] |= input_ids[:, :-1] == ending
    return count(starts)


def from_columns(columns: Sequence[Any], attention_mask: torch.Tensor | None, shape: tuple[int, int]) -> torch.Tensor:
    """Segments given per example, laid where the attention mask is set.

    Args:
        columns: B sequences of ints.
        attention_mask: ``(B, T)`` or None where nothing was padded.
        shape: (B, T).

    Raises:
        ArgumentError: an example has another number of ids than tokens.
    """
    return lay_out(columns, attention_mask, shape, fill=PADDING, name="segments")


def lay_out(
    columns: Sequence[Any], attention_mask: torch.Tensor | None, shape: tuple[int, int], *, fill: int, name: str
) -> torch.Tensor:
    """B sequences of ints as int32 ``(B, T)``, each placed where its row of the mask is set, ``fill`` elsewhere.

    Raises:
        ArgumentError: a sequence is not as long as its row has tokens.
    """
    mask = torch.ones(shape, dtype=torch.bool) if attention_mask is None else attention_mask.cpu() != 0
    if len(columns) != shape[0]:
        if shape[0] != 1:
            raise ArgumentError(f"{name}: {len(columns)} examples, but the inner collator made {shape[0]} rows of them")
        columns = [[ids for column in columns for ids in column]]
    lengths = mask.sum(dim=1).tolist()
    for place, (column, expected) in enumerate(zip(columns, lengths, strict=True)):
        if len(column) != expected:
            raise ArgumentError(
                f"{name} of example {place}: expected {expected} ids, one per token, found {len(column)}; "
                "the inner collator must not cut or merge examples"
            )
    laid = torch.full(shape, fill, dtype=torch.int32)
    laid[mask] = torch.cat([torch.as_tensor(column, dtype=torch.int32).reshape(-1) for column in columns])
    return laid


def positions_in(segments: torch.Tensor) -> torch.Tensor:
    """Tokens of the segment up to and with each position, int64 ``(B, T)``; 0 at padding."""
    places = torch.arange(segments.shape[1], device=segments.device).expand(segments.shape)
    starts = torch.ones_like(segments, dtype=torch.bool)
    starts[:, 1:] = segments[:, 1:] != segments[:, :-1]
    first = torch.where(starts, places, 0).cummax(dim=1).values
    return torch.where(segments < 0, 0, places - first + 1)


def combine(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Segments that change where either does; padding where either is."""
    starts = torch.ones_like(first, dtype=torch.bool)
    starts[:, 1:] = (first[:, 1:] != first[:, :-1]) | (second[:, 1:] != second[:, :-1])
    return torch.where((first < 0) | (second < 0), PADDING, count(starts))


def from_examples(
    examples: Sequence[Any], batch: Mapping[str, Any], attention_mask: torch.Tensor | None, shape: tuple[int, int]
) -> torch.Tensor | None:
    """Segments from what the examples say and the batch made of them does not (TRL's ``seq_lengths``).

    Args:
        examples: mappings with ``input_ids``, or anything else, which says nothing.
        batch: what the inner collator made; a name that it has is left to `from_batch`, but for lists of as many
            numbers as an example has documents, which default collators transpose.
        attention_mask: ``(B, T)``, where the examples' tokens lie.
        shape: (B, T).

    Returns:
        Int32 ``(B, T)``, or None where no example says more than that it is one document.

    Raises:
        ArgumentError: a value contradicts its example, or examples were cut after they were packed.
    """
    segments = None
    if not examples or not all(isinstance(example, Mapping) and "input_ids" in example for example in examples):
        return None
    lengths = [len(example["input_ids"]) for example in examples]
    for name in MARKS:
        if (name in batch and MARKS[name] not in RAGGED) or not all(
            example.get(name) is not None for example in examples
        ):
            continue
        said = [example_numbers(name, example[name], length) for example, length in zip(examples, lengths, strict=True)]
        if all(numbers is None for numbers in said):
            continue
        first = 0
        columns = []
        for numbers, length in zip(said, lengths, strict=True):
            own = torch.zeros(length, dtype=torch.int32) if numbers is None else torch.from_numpy(numbers)
            # Examples that one row is made of stay apart.
            columns.append(torch.where(own < 0, PADDING, own + first))
            first += length
        laid = lay_out(columns, attention_mask, shape, fill=PADDING, name=name)
        segments = laid if segments is None else combine(segments, laid)
    return segments


def from_batch(
    batch: Mapping[str, Any],
    *,
    eos_id: int | Sequence[int] | None = None,
    given: torch.Tensor | None = None,
    past: "int | torch.Tensor" = 0,
) -> torch.Tensor:
    """Segments of a batch from all that it says; `memgraft.boundaries` has the list, `read_mask` the masks.

    Args:
        batch: holds ``input_ids (B, T)``.
        eos_id: also end a segment at each EOS.
        given: segments ``(B, T)`` that the caller knows, of a column for instance.
        past: positions before these (in a cache), which an attention mask also covers. The mask may go on past the
            new positions, as a static cache's does.

    Returns:
        Int32 ``(B, T)``.

    Raises:
        ArgumentError: shapes disagree, a value cannot be read, or a name looks as if it spoke about boundaries and is
            not in the list. A mask of more than two dimensions that cannot be read is an `UnreadableMask` (an
            ArgumentError) unless ``given`` or another entry of the batch says where documents start.
    """
    input_ids = batch["input_ids"]
    _check_2d(input_ids, "input_ids")
    shape = (int(input_ids.shape[0]), int(input_ids.shape[1]))
    _refuse_unread(batch, shape)
    found = [] if given is None else [given]
    edges: torch.Tensor | None = None
    for name, kind in MARKS.items():
        value = batch.get(name)
        if value is None or kind == "mask":
            continue
        if kind == "edges":
            value = torch.as_tensor(value).reshape(-1).to(input_ids.device)
            if edges is not None and not torch.equal(edges.long(), value.long()):
                raise ArgumentError(
                    f"{name}: expected the edges that the batch gives under another name too, {edges.tolist()}, found "
                    f"{value.tolist()}: queries and keys are not of the same documents; drop one"
                )
            edges = value
            found.append(_read_edges(name, value, batch, shape))
        elif (segments := _read(name, kind, value, input_ids)) is not None:
            found.append(segments)
    says_documents = bool(found)
    if batch.get("attention_mask") is not None:
        try:
            mask = read_mask(batch["attention_mask"], shape, past=past)
        except UnreadableMask:
            if not says_documents:
                raise
            mask = None
        if mask is not None:
            found.append(mask)
    if eos_id is not None:
        found.append(from_eos(input_ids, eos_id))
    segments = whole_rows(input_ids)
    for other in found:
        if other.shape != input_ids.shape:
            raise ArgumentError(f"segments: expected shape {tuple(input_ids.shape)}, found {tuple(other.shape)}")
        segments = combine(segments, other.to(segments.device))
    return segments


def _read(name: str, kind: str, value: Any, input_ids: torch.Tensor) -> torch.Tensor | None:
    """Segments that one entry other than masks and edges gives, or None where it says nothing."""
    if kind == "positions":
        return _read_positions(name, value, input_ids)
    if kind == "numbers" and _one_for_each_row(value, input_ids.shape[0]):
        return None
    shape = (int(input_ids.shape[0]), int(input_ids.shape[1]))
    if kind == "numbers":
        numbers = torch.as_tensor(value, device=input_ids.device)
        if numbers.is_floating_point():
            raise ArgumentError(f"{name}: expected whole numbers {shape}, found {numbers.dtype}")
        numbers = _expand(numbers, input_ids)
        if numbers.shape != input_ids.shape:
            raise ArgumentError(f"{name}: expected shape {shape}, found {tuple(numbers.shape)}")
        return combine(numbers, numbers)
    rows = [value] if shape[0] == 1 and not _nested(value) else value
    if len(rows) != shape[0]:
        raise ArgumentError(f"{name}: expected {kind} for each of {shape[0]} rows, found {len(rows)}")
    laid = []
    for row in rows:
        said = example_numbers(name, torch.as_tensor(row).tolist(), shape[1])
        laid.append(torch.zeros(shape[1], dtype=torch.int64) if said is None else torch.from_numpy(said))
    stacked = torch.stack(laid).to(input_ids.device)
    return combine(stacked, stacked)


def _read_positions(name: str, value: Any, input_ids: torch.Tensor) -> torch.Tensor | None:
    positions = torch.as_tensor(value, device=input_ids.device)
    if positions.is_floating_point():
        raise ArgumentError(f"{name}: expected whole numbers, found {positions.dtype}")
    if positions.dim() == 3:
        # Positions of images in three axes say nothing about documents. transformers puts the text's own in front of
        # them where rows are packed: then there are four. Text alone has the same position on all three.
        if positions.shape[0] == 3 and (torch.compiler.is_compiling() or bool((positions != positions[:1]).any())):
            return None
        if positions.shape[0] not in (3, 4):
            raise ArgumentError(
                f"{name}: expected (batch, tokens), or 3 or 4 axes in front of that, found {tuple(positions.shape)}"
            )
        positions = positions[0]
    return from_position_ids(_expand(positions, input_ids))


def _read_edges(name: str, edges: torch.Tensor, batch: Mapping[str, Any], shape: tuple[int, int]) -> torch.Tensor:
    if shape[0] != 1:
        raise ArgumentError(f"{name}: expected one packed row, found input_ids {shape}")
    segments = from_cu_seqlens(edges, shape[1])
    for longest in LONGEST:
        if batch.get(longest) is not None and edges.numel() > 1 and int(edges.diff().max()) > int(batch[longest]):
            raise ArgumentError(
                f"{longest}: expected at least the {int(edges.diff().max())} tokens of the longest document in {name}, "
                f"found {int(batch[longest])}"
            )
    return segments


def _refuse_unread(batch: Mapping[str, Any], shape: tuple[int, int]) -> None:
    """Refuses what looks as if it spoke about boundaries, is not in the list, and has more than a number for each row.

    Raises:
        ArgumentError: there is such an entry.
    """
    for name in unread_names(name for name in batch if isinstance(name, str)):
        if batch[name] is None or _one_for_each_row(batch[name], shape[0]):
            continue
        raise ArgumentError(
            f"{name}: may say where documents start, and is none of {', '.join(MARKS)}; rename it to the one that it "
            "means, or drop it in the inner collator"
        )


def _one_for_each_row(value: Any, num_rows: int) -> bool:
    """Whether there is one number or word for each row, or for the whole batch: rows are documents anyway."""
    if isinstance(value, torch.Tensor):
        return value.dim() == 0 or (value.shape in ((num_rows,), (num_rows, 1)) and not value.is_floating_point())
    if isinstance(value, (list, tuple)):
        return all(isinstance(item, (str, int)) for item in value) and len(value) == num_rows
    return isinstance(value, (str, int, bool))


def _nested(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.dim() > 1
    return any(isinstance(item, (list, tuple, torch.Tensor)) for item in value)


def _expand(values: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
    """Numbers given once for all rows, per row."""
    if values.dim() == 1:
        values = values[None]
    if values.dim() == 2 and values.shape[0] == 1 and values.shape[1] == input_ids.shape[1]:
        return values.expand(input_ids.shape)
    return values


def _check_2d(tensor: torch.Tensor, name: str) -> None:
    if tensor.dim() == 1:
        raise ArgumentError(
            f"{name}: expected (batch, tokens), found {tuple(tensor.shape)}; give one sequence as {name}[None]"
        )
    if tensor.dim() != 2:
        raise ArgumentError(
            f"{name}: expected (batch, tokens), found {tuple(tensor.shape)}; pass segments of your own in a column"
        )
