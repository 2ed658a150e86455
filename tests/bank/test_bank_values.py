import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from memgraft.bank.dtypes import (
    DTYPES,
    FP8_TABLE,
    bf16_to_float,
    channel_scales,
    decode,
    encode,
    float_to_bf16,
    value_dtype,
)
from memgraft.bank.values import shard_header
from memgraft.errors import ArgumentError

FLOATS = hnp.arrays(np.float32, (3, 2, 5), elements=st.floats(-1e4, 1e4, width=32))


def test_bf16_rounds_as_torch_does():
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(0).normal(size=100_000).astype(np.float32) * np.float32(37)
    ties = (np.arange(1 << 14, dtype=np.uint32) << 16 | 0x8000).view(np.float32)
    for array in (values, ties[np.isfinite(ties)]):
        expected = torch.from_numpy(array).to(torch.bfloat16).view(torch.uint16).numpy()
        np.testing.assert_array_equal(float_to_bf16(array), expected)
        np.testing.assert_array_equal(bf16_to_float(expected), torch.from_numpy(expected).view(torch.bfloat16).float())


def test_fp8_codes_are_torch_codes():
    torch = pytest.importorskip("torch")
    codes = torch.arange(256, dtype=torch.uint8)
    np.testing.assert_array_equal(codes.view(torch.float8_e4m3fn).float().numpy(), FP8_TABLE)
    magnitudes = np.unique(np.concatenate([FP8_TABLE[:127], (FP8_TABLE[:126] + FP8_TABLE[1:127]) / 2, [1e-9, 3.14159]]))
    # The row's largest magnitude is 448, so that its scale is 1 and codes can be compared.
    row = np.concatenate([magnitudes, -magnitudes, [448.0]]).astype(np.float32)[None, None]
    stored, scales = encode(row, value_dtype("fp8_e4m3"))
    assert scales is not None
    assert scales.tolist() == [[1.0]]
    expected = torch.from_numpy(row).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    np.testing.assert_array_equal(stored, expected)


@pytest.mark.parametrize(
    ("name", "error"), [("bf16", 2**-8), ("fp16", 2**-11), ("fp32", 0), ("fp8_e4m3", 2**-4), ("int8", None)]
)
@given(values=FLOATS)
def test_decode_undoes_encode_within_the_dtypes_precision(name, error, values):
    dtype = value_dtype(name)
    scales = channel_scales(values) if name == "int8" else None
    stored, row_scales = encode(values, dtype, scales)
    assert stored.dtype == dtype.storage
    found = decode(stored, dtype, row_scales if scales is None else scales)
    if name == "int8":
        assert (np.abs(found - values) <= scales * 0.5001 + 1e-6).all()
        return
    # Below the smallest normal number the step is absolute.
    scale = np.maximum(np.abs(values).max(axis=2, keepdims=True) / 448, 2.0**-126)
    floor = {"fp8_e4m3": scale * 2**-9, "fp16": 2.0**-24}.get(name, 1e-38)
    assert (np.abs(found - values) <= np.abs(values) * error + floor).all()


@pytest.mark.parametrize("dtype", sorted(set(DTYPES) - {"int8"}))
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_named(dtype, bad):
    values = np.zeros((4, 2, 3), np.float32)
    values[2, 1, 0] = bad
    with pytest.raises(ArgumentError, match="row 102, tap 1, channel 0"):
        encode(values, value_dtype(dtype), first_row=100)
    if dtype == "bf16":
        with pytest.raises(ArgumentError, match="row 2, tap 1, channel 0"):
            encode((values.view(np.uint32) >> 16).astype(np.uint16), value_dtype(dtype))


def test_overflow_is_refused():
    with pytest.raises(ArgumentError, match="too large for fp16"):
        encode(np.full((1, 1, 1), 1e5, np.float32), value_dtype("fp16"))
    with pytest.raises(ArgumentError, match="too large for bf16"):
        encode(np.full((1, 1, 1), 3.4e38, np.float32), value_dtype("bf16"))


def test_dtypes_and_scales_are_checked():
    with pytest.raises(ArgumentError, match="fp8_e4m3"):
        value_dtype("fp4")
    values = np.zeros((1, 1, 2), np.float32)
    with pytest.raises(ArgumentError, match="need channel scales"):
        encode(values, value_dtype("int8"))
    with pytest.raises(ArgumentError, match="take no channel scales"):
        encode(values, value_dtype("bf16"), np.ones((1, 2), np.float32))
    with pytest.raises(ArgumentError, match="int64"):
        encode(values.astype(np.int64), value_dtype("bf16"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [0, 1, 3, 1000])
def test_headers_put_values_on_a_page_and_can_be_rewritten(dtype, rows):
    options = {"dtype": value_dtype(dtype), "rows": rows, "taps": 2, "value_dim": 5}
    header = shard_header(**options, metadata={"content": "0" * 64})
    shape = value_dtype(dtype).scales_shape(rows, 2, 5)
    assert (len(header) + (4 * shape[0] * shape[1] if shape else 0)) % 4096 == 0
    again = shard_header(**options, metadata={"content": "f" * 64}, length=len(header))
    assert len(again) == len(header)
    with pytest.raises(ArgumentError, match="at most 20"):
        shard_header(**options, metadata={}, length=20)
