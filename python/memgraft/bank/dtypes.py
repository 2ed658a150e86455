"""The storage types of values: one row of `DTYPES` says all there is to know about one.

A new type is a row here, its encoder and its decoder; ``tests/bank/test_bank_dtypes.py`` goes over the rows. bfloat16
crosses as its bits in uint16, since numpy has no such type.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from memgraft.errors import ArgumentError

FP8_MAX = 448.0
INT8_MAX = 127.0

AnyArray = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]


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


def _fp8_codes(scaled: FloatArray) -> npt.NDArray[np.uint8]:
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


# The encoders take finite float32 ``[rows, taps, value_dim]`` and the channel scales, if the type has any; they give
# what is stored and the row scales, if the type has any.
_Encoded = tuple[AnyArray, FloatArray | None]


def _encode_bf16(floats: FloatArray, _: FloatArray | None) -> _Encoded:
    return float_to_bf16(floats), None


def _encode_fp16(floats: FloatArray, _: FloatArray | None) -> _Encoded:
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(floats.astype("<f2")), None


def _encode_fp32(floats: FloatArray, _: FloatArray | None) -> _Encoded:
    return np.ascontiguousarray(floats, dtype="<f4"), None


def _encode_fp8(floats: FloatArray, _: FloatArray | None) -> _Encoded:
    scales = _scales(np.abs(floats).max(axis=2), FP8_MAX)
    return _fp8_codes(np.clip(floats / scales[..., None], -FP8_MAX, FP8_MAX)), scales


def _encode_int8(floats: FloatArray, scales: FloatArray | None) -> _Encoded:
    assert scales is not None
    return np.clip(np.rint(floats / scales), -INT8_MAX, INT8_MAX).astype(np.int8), None


def _decode_float(stored: AnyArray) -> FloatArray:
    return stored.astype(np.float32)


def _decode_fp8(stored: AnyArray) -> FloatArray:
    return FP8_TABLE[stored]


@dataclass(frozen=True, kw_only=True)
class ValueDtype:
    """One storage type.

    Attributes:
        name: in a bank's manifest and in every ``dtype`` option.
        safetensors: in a shard's header.
        storage: the numpy dtype of what is stored.
        torch: the attribute of ``torch`` that is the same type.
        scales: whether fp32 scales go with each row and tap, or with each tap and channel of the table.
        encoder: see `encode`, which checks what it gives the encoder.
        decoder: stored values as float32, before any scale.
        largest_step: the largest step between neighbouring numbers, as a share of them; with channel scales, whose
            steps depend on the channel alone, in rows of small norm.
    """

    name: str
    safetensors: str
    storage: np.dtype[Any]
    torch: str
    scales: Literal["row", "channel"] | None
    encoder: Callable[[FloatArray, FloatArray | None], _Encoded]
    decoder: Callable[[AnyArray], FloatArray]
    largest_step: float

    @property
    def size(self) -> int:
        """Bytes per value."""
        return int(self.storage.itemsize)

    def scales_shape(self, rows: int, taps: int, value_dim: int) -> tuple[int, int] | None:
        """Shape of the fp32 scales beside ``rows`` rows, if there are any."""
        if self.scales == "row":
            return (rows, taps)
        return (taps, value_dim) if self.scales == "channel" else None

    def bytes_per_row(self, taps: int, value_dim: int) -> int:
        """Bytes of one row of ``taps`` values, its own scales included."""
        return taps * (value_dim * self.size + (4 if self.scales == "row" else 0))


DTYPES: Mapping[str, ValueDtype] = {
    dtype.name: dtype
    for dtype in (
        ValueDtype(
            name="bf16",
            safetensors="BF16",
            storage=np.dtype("<u2"),
            torch="bfloat16",
            scales=None,
            encoder=_encode_bf16,
            decoder=bf16_to_float,
            largest_step=2**-8,
        ),
        ValueDtype(
            name="fp16",
            safetensors="F16",
            storage=np.dtype("<f2"),
            torch="float16",
            scales=None,
            encoder=_encode_fp16,
            decoder=_decode_float,
            largest_step=2**-11,
        ),
        ValueDtype(
            name="fp32",
            safetensors="F32",
            storage=np.dtype("<f4"),
            torch="float32",
            scales=None,
            encoder=_encode_fp32,
            decoder=_decode_float,
            largest_step=0.0,
        ),
        ValueDtype(
            name="fp8_e4m3",
            safetensors="F8_E4M3",
            storage=np.dtype("u1"),
            torch="float8_e4m3fn",
            scales="row",
            encoder=_encode_fp8,
            decoder=_decode_fp8,
            largest_step=2**-4,
        ),
        ValueDtype(
            name="int8",
            safetensors="I8",
            storage=np.dtype("i1"),
            torch="int8",
            scales="channel",
            encoder=_encode_int8,
            decoder=_decode_float,
            largest_step=0.25,
        ),
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


def encode(
    values: AnyArray,
    dtype: ValueDtype,
    scales: FloatArray | None = None,
    *,
    first_row: int | npt.NDArray[np.int64] = 0,
) -> tuple[AnyArray, FloatArray | None]:
    """Values ``[rows, taps, value_dim]`` in storage form, and the row scales ``[rows, taps]`` of a type that has them.

    Args:
        values: float32, float16, float64, or bfloat16 bits as uint16.
        dtype: the storage type.
        scales: channel scales ``[taps, value_dim]``; needed by a type that has them, refused elsewhere.
        first_row: row of ``values[0]``, or the row of each of ``values``, for the error text.

    Raises:
        ArgumentError: a value is not finite, or does not fit the storage type.
    """
    if (scales is not None) != (dtype.scales == "channel"):
        raise ArgumentError(f"{dtype.name} rows {'need' if scales is None else 'take no'} channel scales")
    if dtype.decoder is bf16_to_float and values.dtype == np.uint16:
        _check_finite((values & 0x7F80) != 0x7F80, first_row, "is not finite")
        return np.ascontiguousarray(values), None
    floats = as_float(values)
    _check_finite(np.isfinite(floats), first_row, "is not finite")
    stored, row_scales = dtype.encoder(floats, scales)
    if dtype.scales is None and dtype.size < floats.itemsize:
        # Rounding may have led past the largest number of the type.
        good = np.isfinite(dtype.decoder(stored))
        _check_finite(good, first_row, f"is too large for {dtype.name}; store a wider type, such as fp32")
    return stored, row_scales


def decode(stored: AnyArray, dtype: ValueDtype, scales: FloatArray | None = None) -> FloatArray:
    """Float32 of ``stored [..., taps, value_dim]``; ``scales`` as `encode` gives or takes them."""
    floats = dtype.decoder(stored)
    if dtype.scales is None:
        return floats
    assert scales is not None
    return floats * (scales[..., None] if dtype.scales == "row" else scales)


def _check_finite(good: npt.NDArray[np.bool_], first_row: int | npt.NDArray[np.int64], what: str) -> None:
    if not good.all():
        row, tap, channel = (int(place) for place in np.argwhere(~good)[0])
        named = first_row + row if isinstance(first_row, int) else int(first_row[row])
        raise ArgumentError(f"value at row {named}, tap {tap}, channel {channel} {what}")
