"""A shard's name and header.

A shard is a safetensors file whose data region starts on a page::

    u64 header length | JSON header, padded with spaces | scales (8-bit rows only) | values

``values`` is ``[rows, taps, value_dim]`` in one of the storage types of `memgraft.bank.dtypes`. Rows scaled one by one
carry ``scales [rows, taps]``, tables scaled by channel the same ``scales [taps, value_dim]`` in every shard.
"""

import json
from collections.abc import Mapping
from typing import Any

from memgraft.bank.dtypes import (
    DTYPES,
    FP8_MAX,
    FP8_TABLE,
    INT8_MAX,
    AnyArray,
    FloatArray,
    ValueDtype,
    as_float,
    bf16_to_float,
    channel_scales,
    decode,
    encode,
    float_to_bf16,
    value_dtype,
)
from memgraft.errors import ArgumentError

__all__ = [
    "ALIGNMENT",
    "DTYPES",
    "FP8_MAX",
    "FP8_TABLE",
    "INT8_MAX",
    "AnyArray",
    "FloatArray",
    "ValueDtype",
    "as_float",
    "bf16_to_float",
    "channel_scales",
    "decode",
    "encode",
    "float_to_bf16",
    "shard_header",
    "shard_name",
    "value_dtype",
]

ALIGNMENT = 4096


def shard_name(place: int, num_shards: int) -> str:
    """File name of shard ``place`` (0-based), as the Hugging Face Hub names shards."""
    return f"values-{place + 1:05d}-of-{num_shards:05d}.safetensors"


def shard_header(
    *, dtype: ValueDtype, rows: int, taps: int, value_dim: int, metadata: Mapping[str, str], length: int | None = None
) -> bytes:
    """The first bytes of a shard, padded so that the values start on a page.

    ``length`` fixes the padded length, so that a header can be rewritten in place.

    Raises:
        ArgumentError: the header does not fit ``length``.
    """
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    begin = 0
    shape = dtype.scales_shape(rows, taps, value_dim)
    if shape is not None:
        begin = 4 * shape[0] * shape[1]
        entries["scales"] = {"dtype": "F32", "shape": list(shape), "data_offsets": [0, begin]}
    end = begin + rows * taps * value_dim * dtype.size
    entries["values"] = {"dtype": dtype.safetensors, "shape": [rows, taps, value_dim], "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    if length is None:
        length = 8 + len(text) + (-(8 + len(text) + begin)) % ALIGNMENT
    if 8 + len(text) > length:
        raise ArgumentError(f"the shard header takes {8 + len(text)} bytes, expected at most {length}")
    return (length - 8).to_bytes(8, "little") + text.ljust(length - 8)
