"""Where the bytes of a bank's rows lie: which shard, and at which byte of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from memgraft.bank.dtypes import ValueDtype
from memgraft.bank.values import shard_header, shard_name

UNSEALED = "0" * 64
"""Content fingerprint in the header of a shard that is being written."""


@dataclass(frozen=True, kw_only=True)
class ShardLayout:
    """The shards of a bank, by arithmetic alone; the order of rows is that of the key set.

    Attributes:
        keyset: fingerprint of the key set.
        num_taps: taps per row.
        value_dim: channels per tap.
        dtype: storage type.
        starts: first row of each shard, and the number of rows at the end.
    """

    keyset: str
    num_taps: int
    value_dim: int
    dtype: ValueDtype
    starts: tuple[int, ...]

    @classmethod
    def plan(
        cls, *, keyset: str, num_rows: int, num_taps: int, value_dim: int, dtype: ValueDtype, shard_bytes: int
    ) -> "ShardLayout":
        """Shards of at most ``shard_bytes`` bytes of values and at least one row."""
        rows_per_shard = max(1, shard_bytes // (num_taps * value_dim * dtype.size))
        starts = (*range(0, max(num_rows, 1), rows_per_shard), num_rows)
        return cls(keyset=keyset, num_taps=num_taps, value_dim=value_dim, dtype=dtype, starts=starts)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, all taps, without scales."""
        return self.num_taps * self.value_dim * self.dtype.size

    @property
    def num_shards(self) -> int:
        """Number of value shards."""
        return len(self.starts) - 1

    def names(self) -> list[str]:
        """File names of the shards."""
        return [shard_name(place, self.num_shards) for place in range(self.num_shards)]

    def num_rows(self, place: int) -> int:
        """Rows of a shard."""
        return self.starts[place + 1] - self.starts[place]

    def header(self, place: int, content: str = UNSEALED, length: int | None = None) -> bytes:
        """The header of a shard whose data has the fingerprint ``content``; ``length`` pads it to so many bytes."""
        metadata = {
            "format": "memgraft-values",
            "format_version": "1",
            "keyset": self.keyset,
            "shard": f"{place + 1} of {self.num_shards}",
            "first_row": str(self.starts[place]),
            "content": content,
        }
        return shard_header(
            dtype=self.dtype,
            rows=self.num_rows(place),
            taps=self.num_taps,
            value_dim=self.value_dim,
            metadata=metadata,
            length=length,
        )

    def data_start(self, place: int) -> int:
        """Byte at which the scales of a shard start, or its values where it has none: the length of its header."""
        return len(self.header(place))

    def values_start(self, place: int) -> int:
        """Byte at which the values of a shard start."""
        shape = self.dtype.scales_shape(self.num_rows(place), self.num_taps, self.value_dim)
        return self.data_start(place) + (0 if shape is None else 4 * shape[0] * shape[1])

    def num_bytes(self, place: int) -> int:
        """Length of a shard's file."""
        return self.values_start(place) + self.num_rows(place) * self.row_bytes

    def split(self, rows: npt.NDArray[np.int64]) -> Iterator[tuple[int, int, int]]:
        """The parts of ascending ``rows`` by shard: shard, first and past-the-last place in ``rows``."""
        edges = np.searchsorted(rows, self.starts).tolist()
        for place, (first, last) in enumerate(pairwise(edges)):
            if first < last:
                yield place, first, last


def runs(ascending: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """The runs of neighbours in ``ascending``: first and past-the-last place of each."""
    edges = [0, *(np.flatnonzero(np.diff(ascending) != 1) + 1).tolist(), len(ascending)]
    yield from pairwise(edges)
