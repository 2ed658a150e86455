"""The ids of a batch as a loader's worker sends them, where a collator gives tensors alone."""

from typing import Any

import torch

from memgraft.data.batch import KEY, MemoryBatch
from memgraft.data.pipe import Packed, pack, unpack

__all__ = ["KEY", "MemoryBatch", "ShippedIds"]


class ShippedIds(torch.Tensor):
    """The ids tensor of a batch inside a loader's worker: arrives as a plain tensor, without a shared file."""

    packed: Packed | None = None
    packed_version = -1

    @classmethod
    def of(cls, memory: MemoryBatch) -> "ShippedIds":
        """``memory.to_ids()``, for a worker."""
        ids = memory.to_ids().as_subclass(cls)
        ids.packed, ids.packed_version = pack(memory.rows, memory.orders, memory.segments, memory.source), ids._version
        return ids

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self.packed is not None and self.packed_version == self._version:
            return _arrive_as_ids, self.packed
        # A wrapper of the collator made or changed it.
        ids = self.as_subclass(torch.Tensor)
        if ids.dtype == torch.int32 and ids.dim() == 3 and ids.shape[-1] == 3 and bool((ids[..., 1] >> 8 == 0).all()):
            memory = MemoryBatch.from_ids(ids)
            return _arrive_as_ids, pack(memory.rows, memory.orders, memory.segments)
        return torch.from_numpy, (ids.numpy(),)


def _arrive_as_ids(*packed: Any) -> torch.Tensor:
    return MemoryBatch(**unpack(*packed)).to_ids()
