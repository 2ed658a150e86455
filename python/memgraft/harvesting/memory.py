"""What a harvest allocates, by arithmetic: a working memory that is given, and what follows from keys and settings."""

from memgraft.bank.dtypes import value_dtype
from memgraft.errors import ArgumentError
from memgraft.mining.options import parse_bytes

WORKING_MEMORY = "2GiB"
LEAST_MEMORY = 128 << 20
"""Texts of a few thousand keys in each thread take so much."""
_KEY_BYTES, _TOKEN_BYTES = 60, 8
"""A key, and each of its tokens, while the kept keys are copied out of the mined ones; their index takes less."""


def working_memory(memory: int | str) -> int:
    """Bytes that judging, sorting and searching the corpus may allocate.

    Raises:
        ArgumentError: no size, or less than 128 MiB.
    """
    found = parse_bytes(memory)
    if found < LEAST_MEMORY:
        raise ArgumentError(f"memory: expected at least 128 MiB, which texts take, found {memory}")
    return found


def needed_memory(
    *, num_rows: int, order: float, num_taps: int, value_dim: int, dtype: str, chunk_rows: int, memory: int | str
) -> dict[str, int]:
    """Bytes that a harvest allocates beside the donor, its activations, and mapped files, at most.

    Args:
        num_rows: kept keys.
        order: their tokens on average.
        num_taps: donor depths.
        value_dim: channels of each.
        dtype: storage type.
        chunk_rows: rows computed, and written, at a time.
        memory: the working memory.

    Returns:
        ``working``: in every process, before the donor runs; ``chunks``: in every process, while it does: one being
        computed, one being written; ``sealing``: in one process at a time, when the kept keys are written and indexed;
        ``most``: the largest of them, since they follow one another.
    """
    numbers = min(chunk_rows, num_rows) * num_taps * value_dim
    parts = {
        "working": working_memory(memory),
        "chunks": 2 * numbers * (8 + value_dtype(dtype).size),
        "sealing": int(num_rows * (_KEY_BYTES + _TOKEN_BYTES * order)),
    }
    return {**parts, "most": max(parts.values())}
