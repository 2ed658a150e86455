"""The most frequent rows of a bank, kept on the device, so that only the others cross the bus with a batch."""

import io
import pickle
from dataclasses import dataclass, replace
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import torch
import torch.multiprocessing  # teaches ForkingPickler what tensors are

from memgraft.bank import Memory
from memgraft.data.batch import MemoryBatch
from memgraft.data.dtypes import stored_tensor, torch_dtype
from memgraft.data.ring import StagingRing
from memgraft.errors import ConfigError

_LOAD_ROWS = 65_536


@dataclass(frozen=True, kw_only=True, eq=False)
class HotRows:
    """Rows ``0 .. N-1`` of a bank on a device: rows are in order of falling count, so these are the hot ones.

    One copy serves every loader of a process. Pickling gives another process of the machine the same memory, and never
    a copy: through CUDA's IPC handles on a card, which only processes that were not forked can open, else through
    shared memory. One pickle serves one process, and the process that loaded the rows must outlive the others.

    Attributes:
        values: ``(N, taps, value_dim)`` in storage dtype.
        scales: fp32 ``(N, taps)`` for fp8 rows, else None.
        fingerprint: of the bank they are from.
        shared: whether another process loaded them and holds their memory.
    """

    values: torch.Tensor
    scales: torch.Tensor | None
    fingerprint: str
    shared: bool = False

    @classmethod
    def load(cls, bank: Memory, count: int, device: torch.device | str) -> "HotRows":
        """The first ``count`` rows of ``bank`` (all where it has fewer), in storage dtype.

        Raises:
            ConfigError: a negative count.
            StorageError: a read failed.
        """
        if count < 0:
            raise ConfigError(f"hot_rows {count}: expected rows to keep on the device, from 0")
        count = min(count, bank.num_rows)
        first = bank.stage(rows=np.arange(min(count, 1), dtype=np.int32))
        shape = (count, len(bank.taps), bank.value_dim)
        values = torch.empty(shape, dtype=torch_dtype(first.dtype), device=device)
        scales = torch.empty(shape[:2], device=device) if first.dtype.scales == "row" else None
        for start in range(0, count, _LOAD_ROWS):
            rows = np.arange(start, min(start + _LOAD_ROWS, count), dtype=np.int32)
            staged = bank.stage(rows=rows)
            values[start : start + len(rows)].copy_(stored_tensor(staged.values, staged.dtype))
            if scales is not None and staged.scales is not None:
                scales[start : start + len(rows)].copy_(torch.from_numpy(staged.scales))
        if values.is_cuda:
            # Batches read these on streams of their own, which know nothing of the copies above.
            torch.cuda.synchronize(values.device)
        return cls(values=values, scales=scales, fingerprint=bank.fingerprint)

    def __len__(self) -> int:
        return len(self.values)

    def __reduce__(self) -> tuple[Any, ...]:
        # Tensors have two ways to pickle: torch's for processes gives a handle of their memory, the plain one a copy.
        handle = io.BytesIO()
        ForkingPickler(handle, pickle.HIGHEST_PROTOCOL).dump((self.values, self.scales))
        return _arrive, (handle.getvalue(), self.fingerprint)

    def __deepcopy__(self, memo: dict[int, Any]) -> "HotRows":
        # Nobody writes into them, and a process cannot open a handle of its own memory.
        return self

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.values.device

    @property
    def num_bytes(self) -> int:
        """Bytes they take on the device."""
        return sum(t.numel() * t.element_size() for t in (self.values, self.scales) if t is not None)

    def stage(
        self, memory: MemoryBatch, bank: Memory, ring: StagingRing, *, threads: int | None = None
    ) -> tuple[MemoryBatch, torch.Tensor]:
        """``memory`` with the values of its other rows, and its distinct hot rows, int64 ``(H,)``, ascending.

        Distinct rows are ascending, so the hot ones come first: `join` puts them in front of the others, and every
        position's place among the distinct rows is the one that it has without hot rows.
        """
        memory.refuse_other(bank)
        rows = memory.rows.cpu().numpy()
        unique, inverse = bank.distinct(rows)
        num_hot = int(np.searchsorted(unique, len(self)))
        staged = ring.stage(bank, rows=unique[num_hot:], orders=None, threads=threads)
        facts = replace(
            staged.facts,
            num_positions=rows.size,
            num_hits=int(np.count_nonzero(inverse >= 0)),
            num_unique=len(unique),
            num_hot_rows=num_hot,
        )
        found = memory.with_staged(replace(staged, rows=unique, inverse=inverse, facts=facts))
        return found, torch.from_numpy(unique[:num_hot].astype(np.int64))

    def join(self, memory: MemoryBatch, hot: torch.Tensor) -> MemoryBatch:
        """``memory``, on this device, with the values of the rows ``hot`` in front of its own."""
        assert memory.values is not None
        # As bytes: not every dtype that rows are stored in can be indexed on every device.
        kept = self.values.view(torch.uint8).index_select(0, hot)
        values = torch.cat([kept, memory.values.view(torch.uint8)]).view(memory.values.dtype)
        scales = memory.scales
        if self.scales is not None and scales is not None:
            scales = torch.cat([self.scales.index_select(0, hot), scales])
        return replace(memory, values=values, scales=scales)


def _arrive(handle: bytes, fingerprint: str) -> HotRows:
    values, scales = pickle.loads(handle)
    return HotRows(values=values, scales=scales, fingerprint=fingerprint, shared=True)
