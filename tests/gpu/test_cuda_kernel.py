"""The fused kernel on a card, beside the torch path there and in higher precision."""

from __future__ import annotations

import copy

import kernel_cases
import pytest
import torch

from memgraft.nn import path
from memgraft.nn.graft_layer import GraftLayer
from memgraft.nn.init import initialize


@pytest.mark.parametrize("group", list(kernel_cases.GROUPS))
def test_the_kernel_is_the_torch_path(group: str) -> None:
    kernel_cases.main(group, "cuda")


def wide(dtype: torch.dtype) -> tuple[GraftLayer, tuple[torch.Tensor, ...]]:
    """A layer of a real width without a fallback, and a batch for it: packed segments, padding, hits and misses."""
    generator = torch.Generator().manual_seed(0)
    layer = GraftLayer(1024, 576, fallback=None)
    initialize(layer, "scratch", seed=1, std=0.02)
    for name, parameter in layer.named_parameters():
        if "norm" in name or "conv" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3 + 0.7
    batch, length, unique = 3, 333, 200
    hidden = torch.randn(batch, length, 1024, generator=generator)
    values = torch.randn(unique, 576, generator=generator) * 10
    inverse = torch.randint(-1, unique, (batch, length), generator=generator)
    segments = torch.arange(batch * length).view(batch, length) // 50
    segments[1, :20] = inverse[1, :20] = -1
    tokens = torch.randint(0, 1000, (batch, length), generator=generator)
    inputs = (hidden.to(dtype), values.to(dtype), inverse, segments.int(), tokens)
    return layer.to("cuda", dtype), tuple(tensor.cuda() for tensor in inputs)


def outcome(layer: GraftLayer, inputs: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
    hidden = inputs[0].detach().clone().requires_grad_()
    written, gated = layer(hidden, *inputs[1:])
    probe = torch.linspace(-1, 1, written.numel(), device="cuda", dtype=torch.float64).view(written.shape)
    ((written * probe).sum() + (gated * probe.view(gated.shape)).sum()).backward()
    gradients = {name: parameter.grad for name, parameter in layer.named_parameters() if parameter.grad is not None}
    return {"written": written.detach(), "gated": gated.detach(), "hidden": hidden.grad, **gradients}


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm().clamp_min(1e-30))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
def test_no_further_from_float64_than_the_torch_path(dtype: torch.dtype, tolerance: float) -> None:
    layer, inputs = wide(dtype)
    exact = copy.deepcopy(layer).double()
    expected = outcome(exact, tuple(x.double() if x.is_floating_point() else x for x in inputs))
    found = {}
    for fused in (False, True):
        twin = copy.deepcopy(layer)
        twin.kernel = fused
        found[fused] = outcome(twin, inputs)
    assert found[True].keys() == found[False].keys() == expected.keys()
    for name, right in expected.items():
        plain, kernel = distance(found[False][name], right), distance(found[True][name], right)
        assert kernel < tolerance, (name, plain, kernel)
        # Sums over positions in another order, where the torch path happens to be nearly exact.
        assert kernel < 5 * plain + 1e-5, (name, plain, kernel)


def test_every_run_gives_the_same_bits() -> None:
    layer, inputs = wide(torch.bfloat16)
    layer.kernel = True
    first = outcome(layer, inputs)
    for _ in range(20):
        layer.zero_grad()
        for name, found in outcome(layer, inputs).items():
            assert torch.equal(found, first[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [576, 1024, 2048, 4096, 8192])
def test_real_widths_pass_the_self_check(width: int, dtype: torch.dtype) -> None:
    for trains in (False, True):
        assert path.refusal((width, 1, 4, 3, False, False), torch.device("cuda", 0), dtype, dtype, trains) is None
    # A recipient in bf16 with the graft in float32, as `graft` makes it by default.
    assert path.refusal((width, 1, 4, 3, True, True), torch.device("cuda", 0), dtype, torch.float32, True) is None
