"""Every row of the table of storage types, its torch side included."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from memgraft.bank.dtypes import DTYPES, channel_scales, decode, encode
from memgraft.data.dtypes import stored_array, stored_tensor, to_floats, torch_dtype
from memgraft.errors import ArgumentError

CORE = Path(__file__).parents[2] / "rust" / "memgraft-core" / "src" / "values" / "dtype.rs"


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_numpy_and_torch_read_the_same_numbers(dtype):
    values = np.random.default_rng(0).normal(size=(6, 2, 5)).astype(np.float32)
    scales = channel_scales(values) if dtype.scales == "channel" else None
    stored, row_scales = encode(values, dtype, scales)
    kept = scales if row_scales is None else row_scales
    assert stored.dtype == dtype.storage
    assert (None if kept is None else kept.shape) == dtype.scales_shape(6, 2, 5)
    tensor = stored_tensor(stored, dtype)
    assert tensor.dtype == torch_dtype(dtype)
    assert tensor.data_ptr() == stored.ctypes.data
    read = to_floats(tensor, None if kept is None else torch.from_numpy(kept))
    np.testing.assert_array_equal(read.numpy(), decode(stored, dtype, kept))
    np.testing.assert_allclose(read.numpy(), values, rtol=0.07, atol=0.02)


@pytest.mark.parametrize("name", DTYPES)
def test_a_harvest_hands_over_what_numpy_would_encode(name):
    values = torch.randn(4, 1, 8, generator=torch.Generator().manual_seed(0))
    given = channel_scales(values.numpy()) if DTYPES[name].scales == "channel" else None
    stored, scales = encode(stored_array(values, DTYPES[name]), DTYPES[name], given)
    expected, expected_scales = encode(values.numpy(), DTYPES[name], given)
    np.testing.assert_array_equal(stored, expected)
    assert (scales is None) == (expected_scales is None)


@pytest.mark.parametrize(("function", "of"), [("name", "name"), ("safetensors_name", "safetensors")])
def test_the_core_has_the_same_types(function, of):
    core = CORE.read_text(encoding="utf-8")
    body = re.search(rf"fn {function}\(.*?\n    }}\n", core, re.DOTALL)
    assert body
    assert set(re.findall(r'=> "(\w+)"', body[0])) == {getattr(dtype, of) for dtype in DTYPES.values()}


@pytest.mark.parametrize("name", [name for name, dtype in DTYPES.items() if dtype.scales is None])
def test_neighbours_are_no_further_apart_than_the_row_says(name):
    dtype, values = DTYPES[name], np.random.default_rng(0).uniform(1, 4, (4096, 1, 1)).astype(np.float32)
    read = decode(encode(values, dtype)[0], dtype)
    furthest = float((np.abs(read - values) / values).max())
    assert dtype.largest_step / 4 <= furthest <= dtype.largest_step


def test_scaled_types_have_a_step_too():

    assert all(0 < dtype.largest_step < 1 for dtype in DTYPES.values() if dtype.scales is not None)


def test_bytes_of_a_row_include_its_own_scales():
    assert {name: dtype.bytes_per_row(2, 8) for name, dtype in DTYPES.items()} == {
        "bf16": 32, "fp16": 32, "fp32": 64, "fp8_e4m3": 24, "int8": 16,
    }  # fmt: skip


def test_a_number_past_the_type_is_named():
    with pytest.raises(ArgumentError, match="row 7, tap 0, channel 1 is too large for fp16"):
        encode(np.array([[[1.0, 1e6]]], np.float32), DTYPES["fp16"], first_row=7)
