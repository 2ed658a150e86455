"""What travels with a call from the decoder's hook to the hooks of its layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from memgraft.bank import Memory
from memgraft.data.batch import MemoryBatch
from memgraft.data.masks import UnreadableMask
from memgraft.data.segments import from_batch
from memgraft.errors import FingerprintError, GraftError
from memgraft.integrations.transformers.decode_state import (
    DecodeState,
    GraftedCache,
    adopt,
    cache_length,
    counts_on_host,
)
from memgraft.integrations.transformers.memories import (
    RowMemories,
    is_memory,
    look_up,
    memories_for,
    read_by_row,
    refuse_unopened,
    stage,
)
from memgraft.integrations.transformers.runtime import GraftRuntime

MASK = "attention_mask"


class Off:
    """The side input of a call with the memory switched off."""


OFF = Off()


@dataclasses.dataclass
class SideInput:
    """The memory of one call for one graft.

    Attributes:
        values: (U, taps, V) values of the unique bank rows, in a float dtype; ``None`` under ``control="trainable"``
            and ``"fallback_only"``.
        rows: (U,) numbers of the unique bank rows under ``control="trainable"``, else ``None``.
        inverse: (B, T) index into ``values`` or ``rows``, -1 at a miss.
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
    rows: Tensor | None
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
    given: Any,
    said: Mapping[str, Any],
    cache: Any,
    use_cache: bool,
    vocab_size: int,
) -> SideInputs:
    """Builds the side inputs of one call; looks up and stages what the caller did not.

    Args:
        runtimes: the decoder's grafts.
        input_ids: (B, T) new tokens.
        given: the caller's ``memgraft=``: ``None``, a :class:`MemoryBatch` or its ids, a memory to read instead of the
            graft's own or a sequence of them by row, or a mapping of these by graft name.
        said: what the call says about boundaries, by the names of `memgraft.boundaries`; masks may cover the past.
        cache: the call's cache, or ``None``.
        use_cache: whether the call may make a cache of its own.
        vocab_size: tokens that the recipient has an embedding for.

    Raises:
        GraftError: the call cannot be exact, or ``given`` is something else.
        FingerprintError: a memory that the graft cannot read.
    """
    refuse_unopened(given)
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
        wanted = given.get(name)
        memories = memories_for(runtime, wanted if is_memory(wanted) else None, len(input_ids))
        batch = None if wanted is None or is_memory(wanted) else MemoryBatch.wrap(wanted)
        state = state_for(runtime, cache, input_ids) if use_cache or cache is not None else None
        if state is not None:
            _read_with(state, memories)
        if batch is not None:
            if state is not None and state.num_seen:
                raise GraftError(
                    "memgraft= was passed to a call that continues a cache: its keys lack the history. Leave it out; "
                    "the lookup then reads the history in the cache"
                )
            if batch.rows.shape != input_ids.shape:
                raise GraftError(
                    f"memgraft= is of shape {tuple(batch.rows.shape)}, input_ids of shape {tuple(input_ids.shape)}: "
                    "they are not of the same batch"
                )
            _check_source(runtime, batch)
            segments = batch.segments.to(input_ids.device)
        else:
            if raw is None:
                raw = raw_segments(input_ids, said.get(MASK), said, 0 if state is None else state.past)
            segments = raw
        sides[name] = _side_input(runtime, input_ids, segments, batch, memories, state, vocab_size)
    return SideInputs(sides)


def _side_input(
    runtime: GraftRuntime,
    input_ids: Tensor,
    segments: Tensor,
    batch: MemoryBatch | None,
    memories: RowMemories,
    state: DecodeState | None,
    vocab_size: int,
) -> SideInput:
    num_new, reach = input_ids.shape[1], runtime.reach if state is None else state.reach
    tokens, running = input_ids.long(), segments.long()
    history = state is not None and state.num_seen > 0
    if state is not None and history:
        tokens = torch.cat([state.tokens[:, -reach:], tokens], dim=1)
        running = running_segments(tokens, running, runtime.eos_ids, state.segments[:, -reach:])
    else:
        running = running_segments(tokens, running, runtime.eos_ids)
    device = input_ids.device
    if batch is None and len(memories.each) > 1 and runtime.config.row_source != "none":
        found, inverse, orders = read_by_row(memories, tokens, running, num_new, vocab_size)
        values: Tensor | None = found.to(device)
        misses: Tensor | None = (inverse.flatten() < 0).nonzero().squeeze(1).to(device)
        inverse, rows = inverse.to(device), None
    else:
        if batch is None:
            batch = look_up(memories.each[0], tokens, running, num_new, vocab_size)
        values, rows, inverse, misses = read_values(runtime, batch, device, memories.each[0])
        orders = batch.orders
    if num_new == 1:
        # Steps of decoding have one shape whatever they hit, so that a compiled step is compiled once.
        values, rows = (None if held is None else _padded(held, len(input_ids)) for held in (values, rows))
        misses = None
    next_state = None
    if state is not None:
        next_state = (
            state.extend(state.tokens, tokens[:, -num_new:]),
            state.extend(state.segments, running[:, -num_new:]),
            state.advanced_marks(num_new),
        )
    return SideInput(
        values=values,
        rows=rows,
        inverse=inverse,
        misses=misses,
        orders=orders.to(device, non_blocking=True),
        tokens=tokens,
        segments=running,
        tap_of_site=runtime.tap_of_site,
        history=history,
        state=state,
        next_state=next_state,
        recorder=runtime.recorder,
    )


def read_values(
    runtime: GraftRuntime, memory: MemoryBatch, device: torch.device, bank: Memory | None = None
) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor | None]:
    """What one memory, or the control in its place, has for a call.

    Returns:
        On ``device``: values of the unique rows, or the rows' numbers where a trained table has the values, or
        neither; the inverse; the list of misses.
    """
    source = runtime.config.row_source
    if source == "none":
        return None, None, torch.full_like(memory.rows, -1).to(device), None
    if runtime.controlled is not None or source == "trained":
        replaced: tuple[Tensor | None, Tensor | None, Tensor, Tensor] = _read_controlled(runtime, memory, device)
        return replaced
    memory = (memory if memory.staged else stage(memory, bank or runtime.bank)).to(device, non_blocking=True)
    assert memory.values is not None
    assert memory.inverse is not None
    # bf16 rows stay so until they are normalised; 8-bit rows are scaled here, once per unique row.
    dtype = torch.float32 if memory.scales is not None else memory.values.dtype
    return memory.floats(dtype), None, memory.inverse, memory.misses


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _read_controlled(
    runtime: GraftRuntime, memory: MemoryBatch, device: torch.device
) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor]:
    rows_host = memory.rows.cpu()
    unique, inverse = torch.unique(rows_host.clamp_min(0), return_inverse=True)
    inverse = torch.where(rows_host >= 0, inverse, -1).to(device)
    misses = (rows_host.flatten() < 0).nonzero().squeeze(1).to(device)
    if runtime.controlled is None:
        return None, unique.to(device), inverse, misses
    return torch.from_numpy(runtime.controlled.floats(unique.numpy())).to(device), None, inverse, misses


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


def _check_source(runtime: GraftRuntime, batch: MemoryBatch) -> None:
    """Refuses rows of a bank that the graft does not read, unless they are staged and of its value space.

    Raises:
        FingerprintError: they are.
    """
    if batch.source is None or batch.source[0] == runtime.bank.fingerprint:
        return
    plain = runtime.controlled is None and runtime.config.row_source != "trained"
    if batch.staged and batch.source[1] == runtime.bank.space and plain:
        return
    raise FingerprintError(
        f"memgraft= holds rows of bank {batch.source[0]}, the graft {runtime.name!r} reads {runtime.bank.fingerprint}: "
        'give collator and model one bank (load_graft(..., bank=, rows="any") for another of the same value space)'
    )


def raw_segments(input_ids: Tensor, mask: Any, said: Mapping[str, Any], past: int | Tensor) -> Tensor:
    """The segments (B, T) that the call's mask and boundaries say; -1 is padding.

    Raises:
        GraftError: the mask does not tell documents and padding apart.
    """
    try:
        return from_batch({"input_ids": input_ids, **said, MASK: mask}, past=past)
    except UnreadableMask as error:
        raise GraftError(
            f"the attention mask does not tell documents and padding apart: pass it as (batch, tokens), or memgraft= "
            f"with segments. {error}"
        ) from error


def state_for(runtime: GraftRuntime, cache: Any, input_ids: Tensor) -> DecodeState | None:
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


def _read_with(state: DecodeState, memories: RowMemories) -> None:
    """Lets a fresh state follow ``memories``; checks that a used one did.

    Raises:
        GraftError: the sequences were read with others.
    """
    if not state.num_seen:
        if memories.owners is not None:
            state.look_back(max(state.reach, memories.max_order - 1))
        state.owners = memories.owners
        return
    same = state.owners is memories.owners  # None is the graft's own
    if not same and state.owners is not None and memories.owners is not None:
        same = torch.equal(state.owners, memories.owners)
    if not same:
        raise GraftError(
            "the cache was filled with another memory than this call names: generate the whole sequence with one, or "
            "fill the cache anew"
        )
