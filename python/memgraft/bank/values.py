"""How values are stored: dtypes, their 8-bit encodings, and the bytes of a shard's header.

A shard is a safetensors file whose data region starts on a page::

    u64 header length | JSON header, padded with spaces | scales (8-bit rows only) | values

``values`` is ``[rows, taps, value_dim]``. fp8 rows carry ``scales [rows, taps]``, int8 tables carry the
same ``scales [taps, value_dim]`` in every shard. bfloat16 crosses as uint16.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from memgraft.errors import ArgumentError

ALIGNMENT = 4096
FP8_MAX = 448.0
INT8_MAX = 127.0

AnyArray = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class ValueDtype:
    """One storage type: its names, its numpy twin, and the scales it needs."""

    name: str
    safetensors: str
    storage: np.dtype[Any]
    scales: Literal["row", "channel"] | None

    @property
    def size(self) -> int:
        """Bytes per value."""
        return int(self.storage.itemsize)

    def scales_shape(self, rows: int, taps: int, value_dim: int) -> tuple[int, int] | None:
        """Shape of the fp32 scales beside ``rows`` rows, if there are any."""
        if self.scales == "row":
            return (rows, taps)
        return (taps, value_dim) if self.scales == "channel" else None


DTYPES: Mapping[str, ValueDtype] = {
    dtype.name: dtype
    for dtype in (
        ValueDtype(name="bf16", safetensors="BF16", storage=np.dtype("<u2"), scales=None),
        ValueDtype(name="fp16", safetensors="F16", storage=np.dtype("<f2"), scales=None),
        ValueDtype(name="fp32", safetensors="F32", storage=np.dtype("<f4"), scales=None),
        ValueDtype(name="fp8_e4m3", safetensors="F8_E4M3", storage=np.dtype("u1"), scales="row"),
        ValueDtype(name="int8", safetensors="I8", storage=np.dtype("i1"), scales="channel"),
    )
}


def value_dtype(name: str) -> ValueDtype:
    """The storage type called ``name``.

    Raises:
        ArgumentError: no such type.
    """
    if name not in DTYPES:
        raise ArgumentError(f"dtype {name!r}: expected one of {', '.join(DTYPES)}")
    return DTYPES[name]


def bf16_to_float(values: AnyArray) -> FloatArray:
    """Bfloat16 bits (uint16) as float32."""
    return (values.astype(np.uint32) << 16).view(np.float32)


def float_to_bf16(values: FloatArray) -> npt.NDArray[np.uint16]:
    """float32 as bfloat16 bits (uint16), to nearest, ties to even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))
    return (rounded >> 16).astype(np.uint16)


def _fp8_table() -> FloatArray:
    """The float of every e4m3 code: 4 exponent bits (bias 7), 3 mantissa bits, no infinities."""
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, code & 7
    normal = np.ldexp(1 + mantissa / 8, exponent - 7)
    magnitude = np.where(exponent == 0, np.ldexp(mantissa / 8, -6), normal)
    magnitude[(code & 127) == 127] = np.nan
    return np.where(code >= 128, -magnitude, magnitude).astype(np.float32)


FP8_TABLE = _fp8_table()
_FP8_MIDPOINTS = (FP8_TABLE[:126] + FP8_TABLE[1:127]) / 2


def _encode_fp8(scaled: FloatArray) -> npt.NDArray[np.uint8]:
    """float32 in [-448, 448] as e4m3 codes, to nearest, ties to even."""
    magnitude = np.abs(scaled)
    code = np.searchsorted(_FP8_MIDPOINTS, magnitude, side="left")
    tie = (code < 126) & (_FP8_MIDPOINTS[np.minimum(code, 125)] == magnitude)
    code = code + (tie & (code % 2 == 1))
    signed: npt.NDArray[np.uint8] = (code | (np.signbit(scaled).astype(np.int64) << 7)).astype(np.uint8)
    return signed


def channel_scales(values: AnyArray) -> FloatArray:
    """The int8 scales ``[taps, value_dim]`` that fit ``values [rows, taps, value_dim]`` (float or bf16 bits)."""
    highest = np.zeros(values.shape[1:], dtype=np.float32)
    for start in range(0, len(values), 4096):
        highest = np.maximum(highest, np.abs(as_float(values[start : start + 4096])).max(axis=0))
    return _scales(highest, INT8_MAX)


def _scales(highest: FloatArray, top: float) -> FloatArray:
    """The scales that bring magnitudes up to ``highest`` within ``top``; 1 for zeros, never subnormal."""
    scales = np.where(highest > 0, highest / top, 1).astype(np.float32)
    return np.maximum(scales, np.finfo(np.float32).tiny)


def as_float(values: AnyArray) -> FloatArray:
    """Float32 of float16, float32, float64 values or bfloat16 bits (uint16).

    Raises:
        ArgumentError: another dtype.
    """
    if values.dtype == np.uint16:
        return bf16_to_float(values)
    if values.dtype.kind == "f":
        return values.astype(np.float32, copy=False)
    raise ArgumentError(f"values have dtype {values.dtype}: expected float32, float16 or bfloat16 bits as uint16")


def encode(
    values: AnyArray,
    dtype: ValueDtype,
    scales: FloatArray | None = None,
    *,
    first_row: int | npt.NDArray[np.int64] = 0,
) -> tuple[AnyArray, FloatArray | None]:
    """Values ``[rows, taps, value_dim]`` in storage form, and fp8's row scales ``[rows, taps]``.

    Args:
        values: float32, float16, float64, or bfloat16 bits as uint16.
        dtype: the storage type.
        scales: int8's channel scales ``[taps, value_dim]``; needed there, refused elsewhere.
        first_row: row of ``values[0]``, or the row of each of ``values``, for the error text.

    Raises:
        ArgumentError: a value is not finite, or does not fit the storage type.
    """
    if (scales is not None) != (dtype.scales == "channel"):
        raise ArgumentError(f"{dtype.name} rows {'need' if scales is None else 'take no'} channel scales")
    if dtype.name == "bf16" and values.dtype == np.uint16:
        _check_finite((values & 0x7F80) != 0x7F80, first_row, "is not finite")
        return np.ascontiguousarray(values), None
    floats = as_float(values)
    _check_finite(np.isfinite(floats), first_row, "is not finite")
    if dtype.name == "bf16":
        stored = float_to_bf16(floats)
        _check_finite((stored & 0x7F80) != 0x7F80, first_row, "is too large for bf16")
        return stored, None
    if dtype.name == "fp8_e4m3":
        highest = np.abs(floats).max(axis=2)
        row_scales = _scales(highest, FP8_MAX)
        return _encode_fp8(np.clip(floats / row_scales[..., None], -FP8_MAX, FP8_MAX)), row_scales
    if dtype.name == "int8":
        assert scales is not None
        return np.clip(np.rint(floats / scales), -INT8_MAX, INT8_MAX).astype(np.int8), None
    with np.errstate(over="ignore"):
        stored_floats = floats.astype(dtype.storage)
    _check_finite(np.isfinite(stored_floats), first_row, f"is too large for {dtype.name}; store bf16 or fp32")
    return np.ascontiguousarray(stored_floats), None


def decode(stored: AnyArray, dtype: ValueDtype, scales: FloatArray | None = None) -> FloatArray:
    """Float32 of ``stored [..., taps, value_dim]``; ``scales`` as `encode` gives or takes them."""
    if dtype.name == "bf16":
        return bf16_to_float(stored)
    if dtype.scales is None:
        return stored.astype(np.float32)
    assert scales is not None
    if dtype.scales == "row":
        return FP8_TABLE[stored] * scales[..., None]
    return stored.astype(np.float32) * scales


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


def _check_finite(good: npt.NDArray[np.bool_], first_row: int | npt.NDArray[np.int64], what: str) -> None:
    if not good.all():
        row, tap, channel = (int(place) for place in np.argwhere(~good)[0])
        named = first_row + row if isinstance(first_row, int) else int(first_row[row])
        raise ArgumentError(f"value at row {named}, tap {tap}, channel {channel} {what}")
