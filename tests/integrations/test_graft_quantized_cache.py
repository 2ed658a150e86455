"""Caches that hold keys and values quantized: the memory is read as without a cache, whatever the cache rounds."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from transformers import DynamicCache, cache_utils
from transformers.cache_utils import QuantizedCache, QuantizedLayer

from grafted_models import CACHE, full_logits, grafted, prompts, run
from memgraft.torch import disabled

INTO = pytest.mark.parametrize("into", ["residual", "values"])


class Lossless(QuantizedLayer):
    """The window, the joining and the reordering of a quantized layer, without the rounding."""

    def _quantize(self, tensor: torch.Tensor, axis: int) -> torch.Tensor:
        return tensor.clone()

    def _dequantize(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor


def lossless(model: Any) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    cache.layers = [Lossless(residual_length=4) for _ in cache.layers]
    return cache


@INTO
def test_without_the_rounding_it_is_the_full_forward(into: str, bank: Any) -> None:
    model = grafted(bank, into=into)
    sequences, logits = run(model, prompts(), **{CACHE: lossless(model)})
    torch.testing.assert_close(logits, full_logits(model, sequences), atol=1e-6, rtol=0)


@INTO
def test_beams_take_the_memory_along(into: str, bank: Any) -> None:
    model, ids = grafted(bank, into=into), prompts()
    options: dict[str, Any] = {"max_new_tokens": 12, "num_beams": 4, "num_return_sequences": 4}
    found = model.generate(ids, **{CACHE: lossless(model)}, return_dict_in_generate=True, output_scores=True, **options)
    assert (found.beam_indices.diff(dim=1) != 0).any()
    assert torch.equal(found.sequences, model.generate(ids, use_cache=False, **options))


# The first comes with newer versions of transformers, the others are packages.
BACKENDS = {
    "fp8": hasattr(cache_utils, "Fp8QuantizedLayer"),
    "quanto": importlib.util.find_spec("optimum") is not None,
    "hqq": importlib.util.find_spec("hqq") is not None,
}


@INTO
@pytest.mark.parametrize(
    "backend",
    [
        pytest.param(name, marks=pytest.mark.skipif(not there, reason=f"{name} is not installed"))
        for name, there in BACKENDS.items()
    ],
)
@torch.no_grad()
def test_a_backend_rounds_keys_and_values_and_not_the_memory(backend: str, into: str, bank: Any) -> None:
    model, ids = grafted(bank, into=into), prompts(2, 24)
    whole = model(ids, use_cache=False).logits
    with disabled(model):
        off = model(ids, use_cache=False).logits
    options = {} if backend == "fp8" else {"nbits": 4, "q_group_size": 8, "residual_length": 4}
    cache = QuantizedCache(backend, config=model.config, **options)
    logits = [model(ids[:, :12], **{CACHE: cache}, use_cache=True).logits]
    logits += [model(ids[:, at : at + 1], **{CACHE: cache}, use_cache=True).logits for at in range(12, 24)]
    found = torch.cat(logits, dim=1)
    torch.testing.assert_close(found[:, :12], whole[:, :12], atol=1e-6, rtol=0)
    rounded, memory = (found - whole)[:, 12:].abs().mean(), (off - whole)[:, 12:].abs().mean()
    assert 0 < rounded < 0.25 * memory
