"""Token corpora in Megatron's layout, one sequence per document."""

import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np

MAGIC, UINT16 = b"MMIDIDX\x00\x00", 8


def write_corpus(stem: Path, documents: Iterable[np.ndarray]) -> None:
    """Write ``stem.bin`` and ``stem.idx`` (uint16) beside their final names, then rename both."""
    binary, index = stem.with_suffix(".bin"), stem.with_suffix(".idx")
    lengths: list[int] = []
    with binary.with_suffix(".bin.tmp").open("wb") as out:
        for tokens in documents:
            out.write(tokens.astype("<u2", copy=False).data)
            lengths.append(len(tokens))
    counts = np.array(lengths, dtype="<i4")
    offsets = np.concatenate([[0], np.cumsum(counts[:-1], dtype="<i8") * 2]).astype("<i8")
    with index.with_suffix(".idx.tmp").open("wb") as out:
        out.write(MAGIC + struct.pack("<QBQQ", 1, UINT16, len(lengths), len(lengths) + 1))
        out.write(counts.data)
        out.write(offsets.data)
        out.write(np.arange(len(lengths) + 1, dtype="<i8").data)
    binary.with_suffix(".bin.tmp").rename(binary)
    index.with_suffix(".idx.tmp").rename(index)
