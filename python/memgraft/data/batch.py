"""What a batch carries to the model: rows, and once staged, their values."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from memgraft.arguments import refuse_paths
from memgraft.bank import Memory, Staged, StageFacts
from memgraft.data.dispatch import refuse_if_dispatching
from memgraft.data.dtypes import stored_tensor, to_floats
from memgraft.data.pipe import pack, unpack
from memgraft.errors import ArgumentError, FingerprintError, GraftError, TokenError

if TYPE_CHECKING:
    from memgraft.data.ring import StagingRing

KEY = "memgraft"
"""What a memory is called: a key of batches, a keyword of models, a child of blocks."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class MemoryBatch:
    """The memory of one batch; travels as ``batch["memgraft"]`` and reaches the model as ``memgraft=``.

    Holds tensors and a few words about them, so that it pickles, pins and moves like any batch.

    Attributes:
        rows: int32 ``(B, T)``, -1 = miss.
        orders: uint8 ``(B, T)``, 0 = miss.
        segments: int32 ``(B, T)``, -1 = padding.
        inverse: once staged, int32 ``(B, T)``: index into ``values``, -1 = miss.
        misses: once staged, int64 ``(M,)``: flat indices of the positions without a row, ascending.
        values: once staged, ``(U, taps, value_dim)`` in storage dtype.
        scales: fp32 ``(U, taps)`` for fp8 rows, ``(taps, value_dim)`` for int8 rows, else None.
        facts: telemetry of the staging.
        source: fingerprint and value space of the bank that the rows are of, where that is known.
    """

    rows: torch.Tensor
    orders: torch.Tensor
    segments: torch.Tensor
    inverse: torch.Tensor | None = None
    misses: torch.Tensor | None = None
    values: torch.Tensor | None = None
    scales: torch.Tensor | None = None
    facts: StageFacts | None = None
    source: tuple[str, str] | None = None

    def __repr__(self) -> str:
        """Shape, hits, and the values that are here."""
        here = "not staged" if self.values is None else f"{len(self.values)} distinct rows, {self.values.dtype}"
        return f"MemoryBatch({tuple(self.rows.shape)}, {int(self.hit.sum())} hits, {here})"

    @property
    def staged(self) -> bool:
        """Whether the values are here."""
        return self.values is not None

    @property
    def hit(self) -> torch.Tensor:
        """Bool ``(B, T)``: positions that have a row."""
        return self.rows >= 0

    def stage(self, bank: Memory, ring: "StagingRing | None" = None, *, threads: int | None = None) -> "MemoryBatch":
        """A copy with the values of ``bank``, in memory of ``ring`` if given; itself if staged already.

        Raises:
            ArgumentError: a row is out of range, or ``bank`` is a path, or no memory.
            FingerprintError: the rows are of another bank.
            FormatError: a shard changed since the bank was opened.
            StorageError: a read failed.
        """
        if self.staged:
            return self
        refuse_paths(bank=bank)
        self.refuse_other(bank)
        rows = self.rows.cpu().numpy()
        if ring is None:
            staged = bank.stage(rows=rows, orders=self.orders.cpu().numpy(), threads=threads)
        else:
            staged = ring.stage(bank, rows=rows, orders=self.orders.cpu().numpy(), threads=threads)
        return self.with_staged(staged)

    def refuse_other(self, bank: Memory) -> None:
        """Checks that the rows are of ``bank``.

        Raises:
            FingerprintError: the rows are of another bank.
        """
        if self.source is not None and self.source[0] != bank.fingerprint:
            raise FingerprintError(
                f"the batch's rows are of bank {self.source[0]}, found {bank.fingerprint} to stage them from: give the "
                'collator, prefetch and model one bank (load_graft(..., bank=, rows="any") for another of its space)'
            )

    def with_staged(self, staged: Staged) -> "MemoryBatch":
        """A copy that holds ``staged`` (same positions), on this batch's device; shares memory on the CPU."""
        device = self.rows.device
        return replace(
            self,
            inverse=torch.from_numpy(staged.inverse).to(device),
            misses=torch.from_numpy(np.flatnonzero(staged.inverse < 0)).to(device),
            values=stored_tensor(staged.values, staged.dtype).to(device),
            scales=None if staged.scales is None else torch.from_numpy(staged.scales).to(device),
            facts=staged.facts,
        )

    def floats(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The values as floats ``(U, taps, value_dim)``; 8-bit rows are scaled here, on the device, once per row.

        Raises:
            GraftError: not staged.
        """
        if self.values is None:
            raise GraftError("the batch's memory is not staged: call .stage(bank), or use prefetch(loader, bank)")
        return to_floats(self.values, self.scales, dtype)

    def to(self, device: Any = None, non_blocking: bool = False, **_: Any) -> "MemoryBatch":
        """A copy on ``device``; dtypes stay, whatever else is asked.

        Staged values may lie in a slot that is used again once they are dropped, so that their copy is waited for;
        ``prefetch(device=…)`` is the way to overlap it.
        """
        if device is None or isinstance(device, torch.dtype):
            return self
        non_blocking = non_blocking and not self.staged
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def start_copy(self, device: torch.device) -> "MemoryBatch":
        """A copy that is on its way to ``device`` on the current stream.

        The caller keeps this batch until the stream has passed.
        """
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self, device: Any = None) -> "MemoryBatch":
        """A copy in pinned memory; a DataLoader's pin thread calls this."""
        refuse_if_dispatching()
        return self._map(lambda tensor: tensor if tensor.is_pinned() else tensor.pin_memory())

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Through a DataLoader's pipe as 5 bytes a token: each tensor of its own would cost a handshake for a shared
        # file, most of a millisecond in both processes.
        if self.staged or self.rows.device.type != "cpu":
            return super().__reduce_ex__(protocol)
        return _arrive, pack(self.rows, self.orders, self.segments, self.source)

    def to_ids(self) -> torch.Tensor:
        """Rows, orders and segments as one int32 tensor ``(B, T, 3)``, which any loader can slice and send."""
        return torch.stack([self.rows, self.orders.to(torch.int32), self.segments], dim=-1)

    @classmethod
    def from_ids(cls, ids: torch.Tensor) -> "MemoryBatch":
        """The batch that `to_ids` packed.

        Raises:
            ArgumentError: not an int32 ``(B, T, 3)`` tensor.
        """
        if ids.dtype != torch.int32 or ids.dim() != 3 or ids.shape[-1] != 3:
            raise ArgumentError(
                f"memgraft ids: expected int32 (B, T, 3) from GraftCollator(mode='ids'), found {ids.dtype} "
                f"{tuple(ids.shape)}"
            )
        rows, orders, segments = ids.unbind(-1)
        return cls(rows=rows.contiguous(), orders=orders.to(torch.uint8), segments=segments.contiguous())

    @classmethod
    def wrap(cls, memory: "MemoryBatch | torch.Tensor") -> "MemoryBatch":
        """``batch["memgraft"]`` of either collator mode as a `MemoryBatch`.

        Raises:
            GraftError: something else.
        """
        if isinstance(memory, MemoryBatch):
            return memory
        if isinstance(memory, torch.Tensor):
            return cls.from_ids(memory)
        raise GraftError(
            "memgraft: expected a MemoryBatch or its ids tensor (a model also takes an open bank, or False, which "
            f"switches all grafts off), found {type(memory).__name__}"
        )

    @classmethod
    def look_up(
        cls,
        bank: Memory,
        input_ids: torch.Tensor,
        segments: torch.Tensor,
        *,
        num_new: int | None = None,
        vocab_size: int | None = None,
        threads: int | None = None,
    ) -> "MemoryBatch":
        """Rows of ``input_ids (B, T)`` within ``segments (B, T)``; not staged.

        Tokens past the bank's vocabulary (added ones, rows that only pad an embedding) are in no key and miss.
        Padding may hold any id, also one that no vocabulary has (-100).

        Args:
            bank: where.
            input_ids: tokens, those of history in front.
            segments: one id per contiguous run, -1 at padding.
            num_new: the last positions that are wanted; those before are history. ``None``: all.
            vocab_size: tokens that the recipient has an embedding for, if it is to be checked.
            threads: of the lookup.

        Raises:
            ArgumentError: ``bank`` is a path, or no memory.
            TokenError: a token that is negative or not below ``vocab_size``, at a wanted position that is not padding.
        """
        refuse_paths(bank=bank)
        tokens, segments_host = input_ids.cpu().numpy(), segments.cpu().numpy()
        new = np.s_[..., 0 if num_new is None else tokens.shape[-1] - num_new :]
        read = segments_host[new] >= 0
        lowest, highest = (int(end(tokens[new], initial=0, where=read)) for end in (np.min, np.max))
        if lowest < 0 or (vocab_size is not None and highest >= vocab_size):
            wanted = "from 0 where nothing is padded" if vocab_size is None else f"in 0..{vocab_size - 1}"
            raise TokenError(f"input_ids: expected tokens {wanted}, found {lowest if lowest < 0 else highest}")
        rows, orders = bank.lookup(tokens, segments=segments_host, threads=threads, unknown="miss")
        if num_new is not None:
            rows, orders = rows[new].copy(), orders[new].copy()
        device = input_ids.device
        return cls(
            rows=torch.from_numpy(rows).to(device),
            orders=torch.from_numpy(orders).to(device),
            segments=segments[new].to(device=device, dtype=torch.int32),
            source=(bank.fingerprint, bank.space),
        )

    def tensors(self) -> list[torch.Tensor]:
        """The tensors it holds."""
        return list(self._named_tensors().values())

    def _named_tensors(self) -> dict[str, torch.Tensor]:
        held = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: tensor for name, tensor in held.items() if isinstance(tensor, torch.Tensor)}

    def _map(self, move: Callable[[torch.Tensor], torch.Tensor]) -> "MemoryBatch":
        moved: dict[str, Any] = {name: move(tensor) for name, tensor in self._named_tensors().items()}
        return replace(self, **moved)


def _arrive(*packed: Any) -> MemoryBatch:
    if threading.current_thread() is threading.main_thread():
        # In a DataLoader's pin thread an error here would be lost: `MemoryBatch.pin_memory` asks there.
        refuse_if_dispatching()
    return MemoryBatch(**unpack(*packed))
