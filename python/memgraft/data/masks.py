"""Attention masks as segments: two dimensions say it outright, more dimensions show which positions see each other."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from memgraft.errors import ArgumentError

PADDING = -1
_HIDDEN = -9999.0
"""At or below this an additive mask hides a position; -1e4 is the smallest such number in use."""


class UnreadableMask(ArgumentError):
    """An attention mask that does not say where documents start, or not in a way that is known."""


def read_mask(mask: Any, shape: tuple[int, int], *, past: "int | Tensor" = 0) -> Tensor | None:
    """Segments int32 ``(B, T)`` of an attention mask, -1 at padding; None where the mask says nothing.

    ==========================================  ====================================================================
    mask                                        meaning
    ==========================================  ====================================================================
    ``(B, S)``, whole numbers or bools          0 is padding; other numbers name documents
    ``(B, heads, T, S)`` or ``(B, T, S)``       position t sees column s where a bool or 0/1 mask is set, or where an
                                                additive one (negative numbers, or nothing but zeros in floats) does
                                                not hide it. Padding is what does not see itself; a document starts
                                                where a position sees nothing before it but perhaps padding
    a mapping by layer type                     its ``full_attention``; without one, a document starts where all of
                                                its masks say so
    ==========================================  ====================================================================

    Args:
        mask: the mask.
        shape: (B, T) of the new positions.
        past: positions before the new ones that the mask's columns also cover. A mask with columns past the new
            positions (a static cache's) is read up to them.

    Raises:
        UnreadableMask: a mask that is none of these (a ``BlockMask``), that hides a neighbour and shows what lies
            before it, that hides every position from itself, or whose columns do not cover the positions.
        ArgumentError: two dimensions with negative numbers or fractions.
    """
    if isinstance(mask, Mapping):
        return _read_mapping(mask, shape, past)
    if not isinstance(mask, Tensor):
        raise UnreadableMask(
            f"attention_mask: expected a tensor, found {type(mask).__name__}, which does not tell documents apart; "
            "pass position_ids too, or segments of your own in a column"
        )
    if mask.dim() == 2:
        return from_attention_mask(_columns(mask, shape, past))
    if mask.dim() not in (3, 4) or mask.shape[-2] != shape[1] or mask.shape[0] not in (1, shape[0]):
        raise UnreadableMask(
            f"attention_mask: expected (batch, tokens) or (batch, heads, tokens, columns) for input_ids {shape}, found "
            f"{tuple(mask.shape)}; pass position_ids too, or segments of your own in a column"
        )
    seen = _sees(mask)
    if seen.dim() == 4:
        seen = seen.any(dim=1)
    return _read_seen(seen.expand(shape[0], -1, -1), shape, past)


def from_attention_mask(attention_mask: Tensor) -> Tensor:
    """0 is padding, anything else names a segment (1 throughout in a padded batch, 1, 2, … in a packed one).

    Raises:
        ArgumentError: not a ``(B, T)`` mask of whole numbers from 0.
    """
    if attention_mask.dim() != 2:
        raise ArgumentError(
            f"attention_mask: expected (batch, tokens), found {tuple(attention_mask.shape)}; pass segments of your own "
            "in a column"
        )
    mask = attention_mask.to(torch.int32)
    if not torch.compiler.is_compiling() and bool(((mask < 0) | (mask != attention_mask)).any()):
        raise ArgumentError(
            "attention_mask of (batch, tokens): expected 0 for padding and whole numbers above 0 elsewhere, found "
            f"{attention_mask[(mask < 0) | (mask != attention_mask)][0].item()}"
        )
    if attention_mask.is_floating_point() and not torch.compiler.is_compiling() and not bool(mask.any()):
        raise ArgumentError(
            "attention_mask of (batch, tokens): expected 0 for padding and 1 elsewhere, found floats that are all 0, "
            "as a mask that is added has them; pass whole numbers, or no mask where nothing is padding"
        )
    starts = torch.ones_like(mask, dtype=torch.bool)
    starts[:, 1:] = mask[:, 1:] != mask[:, :-1]
    return torch.where(mask == 0, PADDING, count(starts))


def count(starts: Tensor) -> Tensor:
    """Segment numbers int32, unique over the batch, from where segments start (always at column 0)."""
    return (starts.reshape(-1).cumsum(0) - 1).to(torch.int32).reshape(starts.shape)


def _columns(mask: Tensor, shape: tuple[int, int], past: "int | Tensor") -> Tensor:
    """The columns of the new positions."""
    num_new = shape[1]
    if isinstance(past, int):
        if mask.shape[-1] == num_new:
            return mask
        # More columns than positions and nothing before them: a static cache's, where nothing follows yet.
        beyond = mask.dim() == 2 and past == 0 and not torch.compiler.is_compiling() and bool(mask[:, num_new:].any())
        if mask.shape[-1] < past + num_new or beyond:
            raise (ArgumentError if mask.dim() == 2 else UnreadableMask)(
                f"attention_mask: expected shape {(*mask.shape[:-1], past + num_new)} for {num_new} tokens after "
                f"{past}, found {tuple(mask.shape)}"
            )
        return mask[..., past : past + num_new]
    places = past + torch.arange(num_new, device=mask.device)
    return mask.index_select(-1, places)


def _read_mapping(masks: Mapping[str, Any], shape: tuple[int, int], past: "int | Tensor") -> Tensor | None:
    if "full_attention" in masks:
        given = masks["full_attention"]
        return None if given is None else read_mask(given, shape, past=past)
    found = [read_mask(mask, shape, past=past) for mask in masks.values() if mask is not None]
    parts = [segments for segments in found if segments is not None]
    if not parts or len(parts) < len(masks):
        return None  # a layer without a mask sees everything
    starts = torch.ones_like(parts[0], dtype=torch.bool)
    for part in parts:
        starts[:, 1:] &= part[:, 1:] != part[:, :-1]
    padding = torch.stack([part < 0 for part in parts]).all(dim=0)
    return torch.where(padding, PADDING, count(starts))


def _sees(mask: Tensor) -> Tensor:
    """Where a mask lets a position see a column."""
    if not torch.compiler.is_compiling() and mask.numel():
        least, most = (float(bound) for bound in torch.aminmax(mask.detach().float()))
        whole = not mask.is_floating_point()
        if (whole and least < 0) or (least >= 0 and not bool(((mask == 0) | (mask == 1)).all())):
            raise UnreadableMask(
                "attention_mask of more than two dimensions: expected bools, 0 and 1, or floats that are added and "
                f"hide by being far below 0, found {'whole numbers' if whole else 'numbers'} from {least:g} to "
                f"{most:g}; pass position_ids too, or segments of your own in a column"
            )
    if not mask.is_floating_point():
        return mask != 0
    additive = (mask < 0).any() | ~(mask > 0).any()
    return torch.where(additive, mask > _HIDDEN, mask != 0)


def _read_seen(seen: Tensor, shape: tuple[int, int], past: "int | Tensor") -> Tensor:
    """Segments from which columns each new position sees, bool ``(B, T, S)``."""
    num_new = shape[1]
    own = _columns(seen, shape, past) if seen.shape[-1] != num_new else seen
    diagonal = own.diagonal(dim1=1, dim2=2)
    starts = torch.ones(shape, dtype=torch.bool, device=seen.device)
    before = own.diagonal(offset=-1, dim1=1, dim2=2)
    starts[:, 1:] = ~before
    # Where softmax must not see an empty row, a padded position is let see everything, what follows it included.
    everything = own.all(dim=2) & ~own.all(dim=2).all(dim=1, keepdim=True)
    if num_new > 1:
        # The last position of a row that is one document sees everything too.
        everything[:, -1] &= starts[:, 1:-1].any(dim=1) | everything[:, -2]
    unseen = ~(own & ~everything[:, :, None]).any(dim=1)
    padding = ~diagonal | (everything & unseen)
    if not torch.compiler.is_compiling() and bool(padding.all() | (~diagonal & ~unseen).any()):
        raise UnreadableMask(
            "attention_mask: expected what does not see itself to be padding that nothing sees, found others; True, 1 "
            "and 0.0 added mean that a position is seen: invert the mask, or pass position_ids too"
        )
    if not torch.compiler.is_compiling() and _shows_what_lies_before(own, starts, padding):
        raise UnreadableMask(
            "attention_mask: expected each position to see the one before it or nothing before it, found one that sees "
            "only what lies further back; pass position_ids too, or segments of your own in a column"
        )
    edges = torch.zeros_like(padding)
    edges[:, 1:] = padding[:, :-1] != padding[:, 1:]
    return torch.where(padding, PADDING, count(starts | edges))


def _shows_what_lies_before(own: Tensor, starts: Tensor, padding: Tensor) -> bool:
    """Whether a position that starts a segment, or one after it, sees a real position before the start."""
    if own.shape[1] == 1:
        return False
    # What stands behind padding does not see it, as in a mask of two dimensions; that alone is no start.
    after_real = starts.clone()
    after_real[:, 1:] &= ~padding[:, :-1]
    segments = after_real.cumsum(dim=1)
    other = segments[:, :, None] > segments[:, None, :]
    real = ~padding
    return bool((own & other & real[:, :, None] & real[:, None, :]).any())
