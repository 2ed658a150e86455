"""Rows, orders and segments on their way through a DataLoader's pipe: 5 bytes a token and the runs of segments."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Packed = tuple[
    npt.NDArray[np.int32],
    npt.NDArray[np.uint8],
    npt.NDArray[np.int32],
    npt.NDArray[np.int32],
    tuple[str, str] | None,
]


def pack(
    rows: torch.Tensor, orders: torch.Tensor, segments: torch.Tensor, source: tuple[str, str] | None = None
) -> Packed:
    """Rows, orders, the segments as (id, first position) of each run of equal ones, and the bank they are of."""
    flat = segments.numpy().reshape(-1)
    starts = np.flatnonzero(np.diff(flat, prepend=flat[:1] - 1)).astype(np.int32)
    return rows.numpy(), orders.numpy(), flat[starts], starts, source


def unpack(
    rows: npt.NDArray[np.int32],
    orders: npt.NDArray[np.uint8],
    segments: npt.NDArray[np.int32],
    starts: npt.NDArray[np.int32],
    source: tuple[str, str] | None,
) -> dict[str, Any]:
    """What `pack` was given, by name."""
    each = np.repeat(segments, np.diff(starts, append=rows.size))
    return {
        "rows": torch.from_numpy(rows),
        "orders": torch.from_numpy(orders),
        "segments": torch.from_numpy(each.reshape(rows.shape)),
        "source": source,
    }
