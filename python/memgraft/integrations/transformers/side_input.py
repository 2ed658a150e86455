"""What travels with a call from the decoder's hook to the hooks of its layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from memgraft.bank import Bank
from memgraft.data.handle import MemoryBatch
from memgraft.data.segments import from_batch
from memgraft.errors import GraftError, TokenError
from memgraft.integrations.transformers.decode_state import (
    DecodeState,
    GraftedCache,
    adopt,
    cache_length,
    counts_on_host,
)
from memgraft.integrations.transformers.runtime import GraftRuntime


class Off:
    """The side input of a call with the memory switched off."""


OFF = Off()


@dataclasses.dataclass
class SideInput:
    """The memory of one call for one graft.

    Attributes:
        values: (U, taps, V) unique bank rows in a float dtype; row numbers (U,) under ``control="trainable"``; ``None``
            under ``"fallback_only"``.
        inverse: (B, T) index into ``values``, -1 at a miss.
        misses: (M,) flat indices of the misses; ``None`` evaluates the fallback at every position.
        orders: (B, T) uint8, 0 at a miss.
        tokens: (B, H) the last ``reach`` positions of history, if any, then the T new ones.
        segments: (B, H) running ids of the same, -1 at padding.
        tap_of_site: index into the bank's taps, per site.
        history: whether ``tokens`` and ``segments`` carry history.
        state: the decode state at the start of the call; ``None`` where none is kept.
        next_state: tokens, segments and marks of the state after the call.
        recorder: telemetry, off by default.
        kept: sites that have put their part of the state into the cache.
    """

    values: Tensor | None
    inverse: Tensor
    misses: Tensor | None
    orders: Tensor
    tokens: Tensor
    segments: Tensor
    tap_of_site: dict[int, int]
    history: bool
    state: DecodeState | None
    next_state: tuple[Tensor, Tensor, Tensor] | None
    recorder: Any = None
    kept: set[int] = dataclasses.field(default_factory=set)


@dataclasses.dataclass
class SideInputs:
    """The side inputs of all grafts on a decoder, by name."""

    by_name: dict[str, SideInput]


def prepare(
    runtimes: Mapping[str, GraftRuntime],
    input_ids: Tensor,
    *,
    vocab_size: int,
    given: Any,
    attention_mask: Any,
    position_ids: Tensor | None,
    cu_seqlens: Tensor | None,
    cache: Any,
    use_cache: bool,
) -> SideInputs:
    """Build the side inputs of one call; looks up and stages what the caller did not.

    Args:
        runtimes: the decoder's grafts.
        input_ids: (B, T) new tokens.
        vocab_size: rows of the recipient's embedding.
        given: the caller's ``memgraft=``: ``None``, a :class:`MemoryBatch` or its ids, or a mapping of them by graft
            name.
        attention_mask: (B, past + T), or ``None``.
        position_ids: (B, T), or ``None``.
        cu_seqlens: edges of a packed row, or ``None``.
        cache: the call's cache, or ``None``.
        use_cache: whether the call may make a cache of its own.

    Raises:
        GraftError: the call cannot be exact, or ``given`` is something else.
    """
    if not isinstance(given, Mapping):
        if given is not None and len(runtimes) > 1:
            raise GraftError(
                f"the model has the grafts {sorted(runtimes)}: pass memgraft= as a mapping from their names"
            )
        given = {} if given is None else dict.fromkeys(runtimes, given)
    unknown = sorted(set(given) - set(runtimes))
    if unknown:
        raise GraftError(f"memgraft= names {unknown}, the model has the grafts {sorted(runtimes)}")
    raw = None
    sides: dict[str, SideInput] = {}
    for name, runtime in runtimes.items():
        if runtime.off:
            continue
        memory = MemoryBatch.wrap(given[name]) if name in given else None
        state = _state_for(runtime, cache, input_ids) if use_cache or cache is not None else None
        if memory is not None:
            if state is not None and state.num_seen:
                raise GraftError(
                    "memgraft= was passed to a call that continues a cache: its keys lack the history. Leave it out; "
                    "the lookup then reads the history in the cache"
                )
            if memory.rows.shape != input_ids.shape:
                raise GraftError(
                    f"memgraft= is of shape {tuple(memory.rows.shape)}, input_ids of shape {tuple(input_ids.shape)}: "
                    "they are not of the same batch"
                )
            segments = memory.segments.to(input_ids.device)
        else:
            if raw is None:
                raw = _raw_segments(input_ids, attention_mask, position_ids, cu_seqlens)
            segments = raw
        sides[name] = _side_input(runtime, input_ids, segments, memory, state, vocab_size)
    return SideInputs(sides)


def _side_input(
    runtime: GraftRuntime,
    input_ids: Tensor,
    segments: Tensor,
    memory: MemoryBatch | None,
    state: DecodeState | None,
    vocab_size: int,
) -> SideInput:
    num_new, reach = input_ids.shape[1], runtime.reach
    tokens, running = input_ids.long(), segments.long()
    history = state is not None and state.num_seen > 0
    if state is not None and history:
        tokens = torch.cat([state.tokens[:, -reach:], tokens], dim=1)
        running = running_segments(tokens, running, runtime.eos_ids, state.segments[:, -reach:])
    else:
        running = running_segments(tokens, running, runtime.eos_ids)
    if memory is None:
        memory = _look_up(runtime, tokens, running, num_new, vocab_size)
    values, inverse, misses = read_values(runtime, memory, input_ids.device)
    if num_new == 1:
        # Steps of decoding have one shape whatever they hit, so that a compiled step is compiled once.
        values, misses = None if values is None else _padded(values, len(input_ids)), None
    next_state = None
    if state is not None:
        next_state = (
            state.extend(state.tokens, tokens[:, -num_new:]),
            state.extend(state.segments, running[:, -num_new:]),
            state.advanced_marks(num_new),
        )
    return SideInput(
        values=values,
        inverse=inverse,
        misses=misses,
        orders=memory.orders.to(input_ids.device, non_blocking=True),
        tokens=tokens,
        segments=running,
        tap_of_site=runtime.tap_of_site,
        history=history,
        state=state,
        next_state=next_state,
        recorder=runtime.recorder,
    )


# Lookup and gather are native calls on host memory: a compiler must step over them, not trace them.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _look_up(
    runtime: GraftRuntime, tokens_BH: Tensor, segments_BH: Tensor, num_new: int, vocab_size: int
) -> MemoryBatch:
    """Rows of the last ``num_new`` positions, on the CPU.

    Raises:
        TokenError: a token that the recipient's vocabulary does not have, at a position that is not padding.
    """
    segments = segments_BH.cpu().numpy()
    padding = segments < 0
    # Padding may hold any id, even one that no vocabulary has.
    tokens = np.where(padding, 0, tokens_BH.cpu().numpy())
    if tokens.size and not 0 <= tokens.min() <= tokens.max() < vocab_size:
        wrong = tokens.min() if tokens.min() < 0 else tokens.max()
        raise TokenError(f"input_ids: expected tokens in 0..{vocab_size - 1}, found {wrong}")
    # Tokens that the recipient has and the bank's keys do not know (added ones) are in no key: misses.
    rows, orders = runtime.bank.lookup(tokens, segments=segments, unknown="miss")
    return MemoryBatch(
        rows=torch.from_numpy(rows[:, -num_new:].copy()),
        orders=torch.from_numpy(orders[:, -num_new:].copy()),
        segments=segments_BH[:, -num_new:].int().cpu(),
    )


def read_values(
    runtime: GraftRuntime, memory: MemoryBatch, device: torch.device
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """Unique values (or what the control puts in their place), inverse and list of misses, on ``device``."""
    control = runtime.config.control
    if control == "fallback_only":
        return None, torch.full_like(memory.rows, -1).to(device), None
    if runtime.controlled is not None or control == "trainable":
        replaced: tuple[Tensor, Tensor, Tensor] = _read_controlled(runtime, memory, device)
        return replaced
    memory = (memory if memory.staged else _stage(memory, runtime.bank)).to(device, non_blocking=True)
    assert memory.values is not None
    assert memory.inverse is not None
    # bf16 rows stay so until they are normalised; 8-bit rows are scaled here, once per unique row.
    dtype = torch.float32 if memory.scales is not None else memory.values.dtype
    return memory.floats(dtype), memory.inverse, memory.misses


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _stage(memory: MemoryBatch, bank: Bank) -> MemoryBatch:
    return memory.stage(bank)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _read_controlled(runtime: GraftRuntime, memory: MemoryBatch, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    rows_host = memory.rows.cpu()
    unique, inverse = torch.unique(rows_host.clamp_min(0), return_inverse=True)
    inverse = torch.where(rows_host >= 0, inverse, -1).to(device)
    misses = (rows_host.flatten() < 0).nonzero().squeeze(1).to(device)
    if runtime.controlled is None:
        return unique.to(device), inverse, misses
    return torch.from_numpy(runtime.controlled.floats(unique.numpy())).to(device), inverse, misses


def _padded(values: Tensor, num_rows: int) -> Tensor:
    """``values`` with rows of zeros up to ``num_rows``."""
    return torch.cat([values, values.new_zeros(num_rows - len(values), *values.shape[1:])])


def running_segments(
    tokens: Tensor, segments: Tensor, eos_ids: tuple[int, ...], history: Tensor | None = None
) -> Tensor:
    """Segment ids that count up along each row and change after an EOS; -1 stays padding.

    Args:
        tokens: (B, H) with any history in front.
        segments: (B, T) ids of the new positions.
        eos_ids: tokens that end a segment.
        history: (B, H - T) running ids before the new positions.

    Returns:
        (B, H) int64.
    """
    num_new = segments.shape[1]
    padding = segments < 0
    starts = torch.zeros_like(padding)
    starts[:, 1:] = segments[:, 1:] != segments[:, :-1]
    ended = torch.zeros_like(tokens, dtype=torch.bool)
    for eos in eos_ids:
        ended |= tokens == eos
    if history is None:
        starts[:, 1:] |= ended[:, :-1]
        return torch.where(padding, -1, starts.long().cumsum(dim=1))
    starts |= ended[:, -num_new - 1 : -1]
    # A new token after padding starts anew, whatever came before the padding.
    starts[:, 0] |= history[:, -1] < 0
    base = history.amax(dim=1, keepdim=True).clamp_min(0)
    return torch.cat([history, torch.where(padding, -1, base + starts.long().cumsum(dim=1))], dim=1)


def _raw_segments(
    input_ids: Tensor, attention_mask: Any, position_ids: Tensor | None, cu_seqlens: Tensor | None
) -> Tensor:
    batch: dict[str, Any] = {"input_ids": input_ids}
    if attention_mask is not None:
        if not isinstance(attention_mask, Tensor) or attention_mask.dim() != 2:
            raise GraftError(
                "the attention mask does not tell padding apart: pass it as (batch, tokens), or pass memgraft= with "
                "segments"
            )
        batch["attention_mask"] = attention_mask[:, -input_ids.shape[1] :]
    if position_ids is not None and position_ids.dim() <= 2:
        batch["position_ids"] = position_ids
    if cu_seqlens is not None:
        batch["cu_seqlens"] = cu_seqlens
    return from_batch(batch)


def _state_for(runtime: GraftRuntime, cache: Any, input_ids: Tensor) -> DecodeState | None:
    """The state that the cache holds for this graft, a fresh one for an empty cache.

    Raises:
        GraftError: the cache has positions that this graft has not seen.
    """
    batch, device = input_ids.shape[0], input_ids.device
    if cache is None:
        return DecodeState.empty(batch, runtime.reach, device)
    if not hasattr(cache, "layers") or not hasattr(cache, "get_seq_length"):
        raise GraftError(
            f"a cache of type {type(cache).__name__} cannot carry the graft's decode state: "
            "pass a transformers Cache, or use_cache=False"
        )
    adopt(cache)
    assert isinstance(cache, GraftedCache)
    state = cache.memgraft_states.get(runtime.name)
    length = cache_length(cache) if state is None or counts_on_host(cache) else None
    if length == 0:
        return DecodeState.empty(batch, runtime.reach, device, record=cache.memgraft_records)
    if state is None or (length is not None and state.num_seen != length):
        seen = "none of them" if state is None else f"{state.num_seen}"
        raise GraftError(
            f"the cache holds {length} positions, the graft {runtime.name!r} saw {seen}: they were computed "
            "without it (memory off, another model, or a compiled call that made the cache itself). Fill the cache "
            "with the graft on"
        )
    if int(state.marks[1]) < state.reach:
        raise GraftError("the cache was cropped further back than the graft can follow; refill it")
    if state.tokens.shape[0] != batch:
        raise GraftError(
            f"the cache holds {state.tokens.shape[0]} sequences for the graft, the call has {batch}: reorder the "
            "cache through its own methods (reorder_cache, batch_repeat_interleave, batch_select_indices)"
        )
    return state
