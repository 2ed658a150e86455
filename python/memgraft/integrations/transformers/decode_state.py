"""Decode state of a graft, kept in the cache object so that it is reordered, cropped and copied with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from memgraft.errors import GraftError

# Positions kept beyond what the next step reads, so that rejected drafts can be cropped away.
CROP_SLACK = 64


@dataclasses.dataclass
class DecodeState:
    """What one graft remembers of the sequences in a cache.

    Windows hold the last W positions, the newest last; positions before a sequence's start count as padding.

    Attributes:
        tokens: (B, W) int64.
        segments: (B, W) int64, -1 for padding.
        marks: (2,) int64 on the CPU: positions seen; newest positions of the window that are exact. A tensor and not
            two ints, so that a compiled step does not specialise on them.
        conv: per site the gated values (B, W, S, D) float32.
        reach: positions the next step reads back.
        record: keep every position, for rollbacks of any length.
        owners: (B,) int64 on the CPU, which memory each sequence reads; ``None``: all the graft's own.
    """

    tokens: Tensor
    segments: Tensor
    marks: Tensor
    conv: dict[int, Tensor]
    reach: int
    record: bool = False
    owners: Tensor | None = None

    @classmethod
    def empty(cls, batch: int, reach: int, device: torch.device, *, record: bool = False) -> DecodeState:
        """The state before the first token."""
        width = reach + CROP_SLACK
        return cls(
            tokens=torch.zeros(batch, width, dtype=torch.int64, device=device),
            segments=torch.full((batch, width), -1, dtype=torch.int64, device=device),
            marks=torch.tensor([0, width]),
            conv={},
            reach=reach,
            record=record,
        )

    @property
    def width(self) -> int:
        """Positions that a window keeps unless it records."""
        return self.reach + CROP_SLACK

    @property
    def num_seen(self) -> int:
        """Positions that went into the cache."""
        return int(self.marks[0])

    def look_back(self, reach: int) -> None:
        """Keeps enough for a step that reads ``reach`` positions back, before the first token."""
        empty = DecodeState.empty(len(self.tokens), reach, self.tokens.device)
        self.tokens, self.segments, self.marks, self.reach = empty.tokens, empty.segments, empty.marks, reach

    @property
    def past(self) -> int | Tensor:
        """Positions seen, as a number; a compiler keeps the tensor, which it does not specialise on."""
        return self.marks[0] if torch.compiler.is_compiling() else int(self.marks[0])

    def extend(self, window: Tensor, new: Tensor) -> Tensor:
        """The window after ``new`` came in, both (B, positions, ...)."""
        if self.record:
            return torch.cat([window, new], dim=1)
        width = self.width
        if new.shape[1] >= width:
            # A copy: a view would keep the whole prompt alive.
            return new[:, -width:].clone()
        return torch.cat([window, new], dim=1)[:, -width:]

    def keep_gated(self, site: int, gated: Tensor, *, history: bool, in_place: bool) -> None:
        """Takes in the gated values of the call's positions.

        Args:
            site: of the layer.
            gated: (B, T, S, D) float32.
            history: whether the window holds positions before them.
            in_place: write into the window that is there, so that its address stays: a CUDA graph reads it there.
        """
        before = self.conv.get(site)
        if before is None or not history:
            width = 0 if gated.shape[1] >= self.width else self.width
            before = gated.new_zeros(gated.shape[0], width, *gated.shape[2:])
        after = self.extend(before, gated)
        if in_place and history and after.shape == before.shape and not after.requires_grad:
            before.copy_(after)
            return
        if in_place and not torch.compiler.is_compiling():
            # As static caches mark their keys: a compiler's own CUDA graphs then read the window where it is.
            torch._dynamo.mark_static_address(after)
        self.conv[site] = after

    def advanced_marks(self, num_new: int) -> Tensor:
        """The marks after ``num_new`` more positions."""
        exact = self.marks[1] + num_new
        limit = self.tokens.shape[1] + num_new if self.record else self.width
        return torch.stack([self.marks[0] + num_new, exact.clamp_max(limit)])

    def apply(self, function: Callable[[Tensor], Tensor]) -> None:
        """Maps every per-sequence tensor, batch first."""
        self.tokens = function(self.tokens)
        self.segments = function(self.segments)
        self.conv = {site: function(window) for site, window in self.conv.items()}
        self.owners = None if self.owners is None else function(self.owners)

    def crop(self, num_removed: int) -> None:
        """Forgets the newest positions.

        Raises:
            GraftError: too many to keep the next step exact.
        """
        seen, exact = self.marks.tolist()
        width = self.tokens.shape[1]
        remaining = seen - num_removed
        # A window that still holds the sequence's start stays exact: what is shifted in is padding.
        if seen > width and exact - num_removed < self.reach:
            raise GraftError(
                f"cannot crop {num_removed} positions: the graft keeps {exact - self.reach} for rollbacks. Crop less, "
                "or call cache.activate_past_recording() before the positions are added"
            )
        self.tokens = _shift_out(self.tokens, num_removed, 0)
        self.segments = _shift_out(self.segments, num_removed, -1)
        self.conv = {site: _shift_out(window, num_removed, 0) for site, window in self.conv.items()}
        exact = width if seen <= width else exact - num_removed
        self.marks = torch.tensor([remaining, exact])


def _shift_out(window: Tensor, num_removed: int, fill: int) -> Tensor:
    width = window.shape[1]
    head = window.new_full((window.shape[0], min(num_removed, width), *window.shape[2:]), fill)
    return torch.cat([head, window[:, : max(width - num_removed, 0)]], dim=1)


class GraftedCache:
    """Mixed into a cache's class, so that the graft's state follows whatever is done to the cache."""

    memgraft_states: dict[str, DecodeState]
    memgraft_records: bool

    def reset(self) -> None:
        """Forgets everything."""
        super().reset()  # type: ignore[misc]
        self.memgraft_states.clear()

    def reorder_cache(self, beam_idx: Tensor) -> Any:
        """Follows the beams."""
        result = super().reorder_cache(beam_idx)  # type: ignore[misc]
        self.map_windows(lambda window: window.index_select(0, beam_idx.to(window.device)))
        return result

    def crop(self, *args: Any, **kwargs: Any) -> None:
        """Forgets the newest positions."""
        before = cache_length(self)
        super().crop(*args, **kwargs)  # type: ignore[misc]
        removed = before - cache_length(self)
        if removed:
            for state in self.memgraft_states.values():
                state.crop(removed)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats each sequence."""
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        self.map_windows(lambda window: window.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps some sequences."""
        super().batch_select_indices(indices)  # type: ignore[misc]
        self.map_windows(lambda window: window[indices.to(window.device)])

    def activate_past_recording(self) -> None:
        """Keeps every position from now on."""
        super().activate_past_recording()  # type: ignore[misc]
        self.memgraft_records = True
        for state in self.memgraft_states.values():
            state.record = True

    def map_windows(self, function: Callable[[Tensor], Tensor]) -> None:
        """Puts ``function`` of each window of each graft's state in its place."""
        for state in self.memgraft_states.values():
            state.apply(function)

    def __reduce_ex__(self, protocol: Any) -> Any:
        base: Any = type(self).__mro__[2]
        return _rebuild, (base,), self.__dict__


@cache
def _grafted_type(base: Any) -> Any:
    return type(f"Grafted{base.__name__}", (GraftedCache, base), {"__module__": base.__module__})


def _rebuild(base: Any) -> Any:
    kind = _grafted_type(base)
    return kind.__new__(kind)


def adopt(cache_object: Any) -> None:
    """Makes a cache carry graft state; the object stays the same, its class gains :class:`GraftedCache`."""
    if not isinstance(cache_object, GraftedCache):
        kind: Any = type(cache_object)
        cache_object.__class__ = _grafted_type(kind)
        cache_object.memgraft_states = {}
        cache_object.memgraft_records = any(getattr(layer, "record_past", False) for layer in cache_object.layers)


def cache_length(cache_object: Any) -> int:
    """Positions in a cache; waits for the device when the cache counts there.

    Raises:
        GraftError: the cache does not count positions.
    """
    try:
        return int(cache_object.get_seq_length())
    except ValueError as error:
        raise GraftError(
            f"{type(cache_object).__name__} does not count its positions, so the graft cannot tell whether it saw them "
            f"all: generate with use_cache=False. ({error})"
        ) from error


def is_static(cache_object: Any) -> bool:
    """Whether the cache writes its keys into fixed places, as compiled and captured steps need."""
    return bool(getattr(cache_object, "is_compileable", False)) and not cache_object.memgraft_records


def counts_on_host(cache_object: Any) -> bool:
    """Whether reading the length costs no wait for a device."""
    length = cache_object.get_seq_length()
    return not isinstance(length, Tensor) or length.device.type == "cpu"
