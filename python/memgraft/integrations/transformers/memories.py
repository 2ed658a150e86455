"""Which memory a call reads: the graft's own, or others of the same value space, one for all rows or one for each."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from memgraft.bank import Memory
from memgraft.bank.manifest import differing_space
from memgraft.data.batch import MemoryBatch
from memgraft.errors import ArgumentError, FingerprintError, GraftError
from memgraft.integrations.transformers.runtime import GraftRuntime
from memgraft.tokenizer import other_mapping

# What `generate(memgraft=...)` asked for, by decoder (its id). A context and no keyword: calls that generate() makes on
# its own (guidance, an assistant that shares the decoder) read the same memory.
_requested: ContextVar[dict[int, Any] | None] = ContextVar("memgraft_requested", default=None)


@contextlib.contextmanager
def requesting(decoder: nn.Module, given: Any) -> Iterator[None]:
    """Calls of this thread or task on ``decoder`` that say nothing else read ``given``."""
    token = _requested.set({**(_requested.get() or {}), id(decoder): given})
    try:
        yield
    finally:
        _requested.reset(token)


def requested(decoder: nn.Module) -> Any:
    """What the context asks for, or ``None``."""
    return (_requested.get() or {}).get(id(decoder))


def refuse_unopened(given: Any) -> None:
    """Refuses the path of a bank as ``memgraft=``, which every call would open anew.

    Raises:
        ArgumentError: it is one, alone or among others.
    """
    if isinstance(given, str | os.PathLike):
        raise ArgumentError(f"memgraft=: expected an open bank, got the path {given!r}; open it once with Bank.open")
    if isinstance(given, Mapping | list | tuple):
        for each in given.values() if isinstance(given, Mapping) else given:
            refuse_unopened(each)


def is_memory(given: Any) -> bool:
    """Whether ``memgraft=`` names a memory, or one for each row, and not a batch of looked-up rows."""
    if isinstance(given, list | tuple):
        return all(item is None or is_memory(item) for item in given)
    return not isinstance(given, type | Tensor | MemoryBatch | bool) and isinstance(given, Memory)


@dataclasses.dataclass(frozen=True)
class RowMemories:
    """The memories of one call.

    Attributes:
        each: one for all rows of the batch, or one for each.
        owners: (B,) int64 on the CPU, which memory a row reads; ``None`` where all read the graft's own.
    """

    each: tuple[Memory, ...]
    owners: Tensor | None = None

    @property
    def max_order(self) -> int:
        """The longest key of any."""
        return max(memory.max_order for memory in self.each)


def memories_for(runtime: GraftRuntime, given: Any, batch: int) -> RowMemories:
    """The memories that ``memgraft=`` names, checked against the graft.

    Args:
        runtime: the graft.
        given: ``None``, a memory, or a sequence of them by row (``None``: the graft's own). A sequence shorter than
            the batch is repeated row by row, as generation repeats its prompts for beams and samples.
        batch: rows of the call.

    Raises:
        FingerprintError: a memory of another value space, or of another tokenizer.
        GraftError: the rows cannot be matched, or the graft is under a control that replaces its rows.
    """
    if given is None:
        return RowMemories((runtime.bank,))
    wanted: Sequence[Any] = given if isinstance(given, list | tuple) else [given]
    each = tuple(runtime.bank if memory is None else memory for memory in wanted)
    if not each or (len(each) > 1 and batch % len(each)):
        raise GraftError(
            f"memgraft= names {len(each)} memories for a batch of {batch} rows: give one, or one for each row"
        )
    others = {memory.fingerprint: memory for memory in each if memory.fingerprint != runtime.bank.fingerprint}
    if not others:
        return RowMemories((runtime.bank,))
    if runtime.controlled is not None or runtime.config.row_source == "trained":
        raise GraftError(
            f"the graft {runtime.name!r} reads rows of control={runtime.config.control!r} in place of a memory's: "
            "memgraft= can name another memory only without a control"
        )
    for memory in others.values():
        check_space(runtime.bank, memory)
    if len(each) > 1:
        each = tuple(memory for memory in each for _ in range(batch // len(each)))
    owners = torch.tensor([_owner(memory) for memory in each], dtype=torch.int64)
    return RowMemories(each, owners.expand(batch).clone() if len(each) == 1 else owners)


def check_space(own: Memory, other: Memory) -> None:
    """Refuses a memory that a graft cannot read in place of its own.

    Raises:
        FingerprintError: another value space, or keys of another tokenizer.
    """
    if other.space != own.space:
        raise FingerprintError(
            f"the graft reads values of space {own.space} (donor {own.manifest.donor.get('name', 'unknown')}), the "
            f"memory {other.fingerprint} is of space {other.space} (donor "
            f"{other.manifest.donor.get('name', 'unknown')}): "
            f"{differing_space(own.manifest.value_space, other.manifest.value_space)}; harvest it with the donor, taps "
            "and prefix of the graft's bank"
        )
    mine, theirs = own.manifest.tokenizer, other.manifest.tokenizer
    if other_mapping(mine, theirs):
        raise FingerprintError(
            f"the graft's keys are of tokenizer {mine.get('fingerprint')}, those of the memory {other.fingerprint} of "
            f"{theirs.get('fingerprint')}: their ids mean other text"
        )


def _owner(memory: Memory) -> int:
    return int.from_bytes(hashlib.blake2b(memory.fingerprint.encode(), digest_size=7).digest(), "big")


# Lookup and gather are native calls on host memory: a compiler must step over them, not trace them.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def look_up(memory: Memory, tokens_BH: Tensor, segments_BH: Tensor, num_new: int, vocab_size: int) -> MemoryBatch:
    """`MemoryBatch.look_up` of the last ``num_new`` positions, left on the CPU, where the rows are staged."""
    return MemoryBatch.look_up(memory, tokens_BH.cpu(), segments_BH.cpu(), num_new=num_new, vocab_size=vocab_size)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def stage(memory: MemoryBatch, bank: Memory) -> MemoryBatch:
    """The batch with its values."""
    return memory.stage(bank)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def read_by_row(
    memories: RowMemories, tokens_BH: Tensor, segments_BH: Tensor, num_new: int, vocab_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Looks up and gathers rows of a batch that reads several memories, each memory once.

    Returns:
        Values (U, taps, V) of all memories one after another; inverse (B, num_new) int32, -1 at a miss; orders
        (B, num_new) uint8.
    """
    places: dict[str, list[int]] = {}
    for row, memory in enumerate(memories.each):
        places.setdefault(memory.fingerprint, []).append(row)
    inverse = torch.full((len(tokens_BH), num_new), -1, dtype=torch.int32)
    orders = torch.zeros(inverse.shape, dtype=torch.uint8)
    values: list[Tensor] = []
    first = 0
    for rows in places.values():
        memory = memories.each[rows[0]]
        staged = stage(look_up(memory, tokens_BH[rows], segments_BH[rows], num_new, vocab_size), memory)
        assert staged.values is not None
        assert staged.inverse is not None
        found = staged.floats(torch.float32 if staged.scales is not None else staged.values.dtype)
        inverse[rows] = torch.where(staged.inverse >= 0, staged.inverse + first, -1)
        orders[rows] = staged.orders
        values.append(found)
        first += len(found)
    return torch.cat(values), inverse, orders
