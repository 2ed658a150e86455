"""Segment ids ``(B, T)`` int32 from what training batches carry: look-back stops where they change; -1 is padding."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from memgraft.errors import ArgumentError

PADDING = -1
_CU_SEQLENS_NAMES = ("cu_seqlens", "cu_seq_lens_q", "cu_seq_lens")


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
    return _count(starts)


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


def from_eos(input_ids: torch.Tensor, eos_id: int) -> torch.Tensor:
    """An EOS belongs to the segment it ends; the next position starts a new one.

    Args:
        input_ids: ints ``(B, T)``.
        eos_id: the end-of-segment token.
    """
    _check_2d(input_ids, "input_ids")
    starts = torch.ones_like(input_ids, dtype=torch.bool)
    starts[:, 1:] = input_ids[:, :-1] == eos_id
    return _count(starts)


def from_attention_mask(attention_mask: torch.Tensor) -> torch.Tensor:
    """0 is padding, anything else names a segment (1 throughout in a padded batch, 1, 2, … in a packed one).

    Raises:
        ArgumentError: not a ``(B, T)`` mask.
    """
    _check_2d(attention_mask, "attention_mask")
    mask = attention_mask.to(torch.int32)
    starts = torch.ones_like(mask, dtype=torch.bool)
    starts[:, 1:] = mask[:, 1:] != mask[:, :-1]
    return torch.where(mask == 0, PADDING, _count(starts))


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
    mask = torch.ones(shape, dtype=torch.bool) if attention_mask is None else attention_mask != 0
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
    return torch.where((first < 0) | (second < 0), PADDING, _count(starts))


def from_batch(batch: Mapping[str, Any], *, eos_id: int | None = None) -> torch.Tensor:
    """Segments of a batch from all that it says: cu_seqlens, position_ids, attention_mask, and EOS where asked.

    Args:
        batch: holds ``input_ids (B, T)``.
        eos_id: also end a segment at each EOS.

    Raises:
        ArgumentError: shapes disagree, or the attention mask is not ``(B, T)``.
    """
    input_ids = batch["input_ids"]
    _check_2d(input_ids, "input_ids")
    segments = whole_rows(input_ids)
    found: list[torch.Tensor] = []
    for name in _CU_SEQLENS_NAMES:
        if batch.get(name) is not None:
            if input_ids.shape[0] != 1:
                raise ArgumentError(f"{name}: expected one packed row, found input_ids {tuple(input_ids.shape)}")
            found.append(from_cu_seqlens(batch[name], input_ids.shape[1]))
            break
    if batch.get("position_ids") is not None:
        found.append(from_position_ids(_expand(batch["position_ids"], input_ids)))
    if batch.get("attention_mask") is not None:
        found.append(from_attention_mask(batch["attention_mask"]))
    if eos_id is not None:
        found.append(from_eos(input_ids, eos_id))
    for other in found:
        if other.shape != input_ids.shape:
            raise ArgumentError(f"segments: expected shape {tuple(input_ids.shape)}, found {tuple(other.shape)}")
        segments = combine(segments, other)
    return segments


def _expand(position_ids: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
    """Positions given once for all rows, per row."""
    if position_ids.dim() == 1:
        position_ids = position_ids[None]
    return position_ids.expand(input_ids.shape) if position_ids.shape[0] == 1 else position_ids


def _count(starts: torch.Tensor) -> torch.Tensor:
    """Segment numbers, unique over the batch, from where segments start (always at column 0)."""
    return (starts.reshape(-1).cumsum(0) - 1).to(torch.int32).reshape(starts.shape)


def _check_2d(tensor: torch.Tensor, name: str) -> None:
    if tensor.dim() != 2:
        raise ArgumentError(
            f"{name}: expected (batch, tokens), found {tuple(tensor.shape)}; pass segments of your own in a column"
        )
