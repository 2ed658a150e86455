"""Which of how many processes this one is, and on which device it runs the donor."""

import os
from dataclasses import dataclass

from memgraft.errors import ArgumentError

_LAUNCHERS = (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS"))
_LOCAL = ("LOCAL_RANK", "SLURM_LOCALID")


@dataclass(frozen=True, kw_only=True)
class Rank:
    """One process of a world."""

    rank: int
    world_size: int

    @classmethod
    def find(cls, rank: int | None, world_size: int | None) -> "Rank":
        """What is given; else what ``torchrun`` or Slurm say in the environment; else one process alone.

        Raises:
            ArgumentError: one without the other, no numbers, or a rank beyond the world.
        """
        source = "given"
        if (rank is None) != (world_size is None):
            raise ArgumentError(f"rank {rank}, world_size {world_size}: expected both or neither")
        if rank is None or world_size is None:
            rank, world_size = 0, 1
            for names in _LAUNCHERS:
                if all(name in os.environ for name in names):
                    rank, world_size = (_number(name) for name in names)
                    source = f"from {' and '.join(names)}"
                    break
        if world_size < 1 or not 0 <= rank < world_size:
            raise ArgumentError(
                f"rank {rank} ({source}): expected 0 to {world_size - 1} in a world of {world_size}; ranks count from 0"
            )
        return cls(rank=rank, world_size=world_size)

    def device(self, asked: str | None) -> str | None:
        """The device for ``asked``: with several processes ``None`` and ``"cuda"`` are one card each."""
        if self.world_size == 1 or asked not in (None, "cuda"):
            return asked
        import torch

        if not torch.cuda.is_available():
            return asked
        local = next((_number(name) for name in _LOCAL if name in os.environ), self.rank)
        return f"cuda:{local % torch.cuda.device_count()}"


def _number(name: str) -> int:
    try:
        return int(os.environ[name])
    except ValueError:
        raise ArgumentError(f"{name}: expected a number in the environment, found {os.environ[name]!r}") from None
