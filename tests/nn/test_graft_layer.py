"""The graft layer against its naive twin, values and gradients."""

from __future__ import annotations

import itertools
from typing import get_args

import pytest
import torch

from memgraft.config import FallbackConfig, Gate
from memgraft.errors import ArgumentError
from memgraft.nn.compression import CompressedVocabulary
from memgraft.nn.fallback import HashFallback
from memgraft.nn.graft_layer import GraftLayer
from memgraft.nn.hashing import prime_sizes
from memgraft.nn.init import initialize
from memgraft.nn.naive import naive_graft

VOCAB, D, V = 50, 8, 12


def make_fallback(*, seed: int = 3, layer: int = 1, sparse: bool = False) -> HashFallback:
    config = FallbackConfig(orders=(2, 3), num_heads=2, table_size=11, dim=6, sparse_gradients=sparse)
    sizes = prime_sizes(1, config.table_sizes, config.num_heads)[0]
    vocabulary = CompressedVocabulary([token // 2 for token in range(VOCAB)])
    return HashFallback(config, vocabulary=vocabulary, layer=layer, sizes=sizes, seed=seed, pad_token_id=4)


def make_layer(*, value_dim: int | None = V, fallback: bool = True, **options) -> GraftLayer:
    layer = GraftLayer(D, value_dim, fallback=make_fallback() if fallback else None, **options)
    init = "scalar" if options.get("output_scale") else "scratch"
    initialize(layer, init, seed=5, std=0.5)
    # A zero convolution and unit norms would hide mistakes in them.
    generator = torch.Generator().manual_seed(7)
    for name, parameter in layer.named_parameters():
        if "norm" in name or "conv" in name or name == "scale":
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.5 + 0.7
    return layer


def make_inputs(*, streams: int = 1, batch: int = 2, length: int = 17, unique: int = 5):
    generator = torch.Generator().manual_seed(11)
    shape = (batch, length, D) if streams == 1 else (batch, length, streams, D)
    hidden = torch.randn(shape, generator=generator)
    values = torch.randn(unique, V, generator=generator) * 10
    inverse = torch.randint(-1, unique, (batch, length), generator=generator)
    tokens = torch.randint(0, VOCAB, (batch, length), generator=generator)
    segments = torch.zeros(batch, length, dtype=torch.int32)
    segments[0, 6:] = 1
    segments[0, 9:] = 2
    segments[1, :3] = -1
    inverse[1, :3] = -1
    return hidden, values, inverse, segments, tokens


CASES = {
    "plain": {},
    "signed_sqrt": {"gate": "signed_sqrt"},
    "no_conv": {"conv": False},
    "kernel3_dilation2": {"conv_kernel": 3, "conv_dilation": 2},
    "no_fallback": {"fallback": False},
    "fallback_alone": {"value_dim": None},
    "raw_values": {"normalize_values": False},
    "streams": {"streams": 3},
    "scale": {"output_scale": True},
    "trainable_rows": {"num_trainable_rows": 9},
    "no_gate": {"gate": "none"},
    "no_gate_streams": {"gate": "none", "streams": 3, "fallback": False},
    "target": {"target_dim": 6},
    "wide_target": {"target_dim": 14, "gate": "signed_sqrt", "conv": False},
}


TRAINED_ROWS = torch.tensor([8, 3, 0, 5, 1])


def test_every_gate_has_a_case():
    assert {case.get("gate", "plain") for case in CASES.values()} == set(get_args(Gate))


def listed(inverse: torch.Tensor) -> torch.Tensor:
    """Flat indices of the misses."""
    return (inverse.flatten() < 0).nonzero().squeeze(1)


@pytest.mark.parametrize("where", ["everywhere", "at_misses"])
@pytest.mark.parametrize("case", CASES)
def test_layer_equals_naive_twin_with_gradients(case: str, where: str) -> None:
    layer = make_layer(**CASES[case])
    hidden, values, inverse, segments, tokens = make_inputs(streams=layer.streams)
    values, rows = (values, None) if layer.rows is None else (None, TRAINED_ROWS)
    hidden.requires_grad_()
    generator = torch.Generator().manual_seed(1)
    target = None
    if layer.target_dim is not None:
        target = torch.randn(*hidden.shape[:2], layer.target_dim, generator=generator).requires_grad_()
    probe = torch.randn((hidden if target is None else target).shape, generator=generator)
    names = [name for name, _ in layer.named_parameters()]

    misses = listed(inverse) if where == "at_misses" and layer.value_dim is not None else None
    fast, _ = layer(hidden, values, inverse, segments, tokens, misses_M=misses, target_BTE=target, rows_U=rows)
    slow = naive_graft(layer, hidden, values, inverse, segments, tokens, target, rows)
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-5)

    leaves = [hidden, *layer.parameters()]
    if target is not None:
        leaves, names = [target, *leaves], ["target", *names]
    fast_gradients = torch.autograd.grad((fast * probe).sum(), leaves)
    slow_gradients = torch.autograd.grad((slow * probe).sum(), leaves)
    for name, got, expected in zip(
        ["hidden", *names] if target is None else ["target", "hidden", *names[1:]],
        fast_gradients,
        slow_gradients,
        strict=True,
    ):
        torch.testing.assert_close(got, expected, atol=2e-4, rtol=2e-4, msg=lambda text, name=name: f"{name}: {text}")
        if name not in ("conv.norm.weight", "scale"):
            assert got.abs().max() > 0, name


@pytest.mark.parametrize("streams", [1, 2])
def test_history_continues_exactly(streams: int) -> None:
    layer = make_layer(streams=streams)
    hidden, values, inverse, segments, tokens = make_inputs(streams=streams, length=25)
    whole, gated = layer(hidden, values, inverse, segments, tokens)
    cuts = [0, 4, 5, 6, 18, 25]
    parts = []
    for start, stop in itertools.pairwise(cuts):
        out, new = layer(
            hidden[:, start:stop],
            values,
            inverse[:, start:stop],
            segments[:, :stop],
            tokens[:, :stop],
            conv_state_BCSD=gated[:, :start] if start else None,
        )
        torch.testing.assert_close(new, gated[:, start:stop])
        parts.append(out)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-6, rtol=1e-6)


def test_history_without_its_gated_values_is_refused() -> None:
    hidden, values, inverse, segments, tokens = make_inputs()
    layer = make_layer()
    new = hidden[:, -2:], values, inverse[:, -2:], segments, tokens
    with pytest.raises(
        ArgumentError, match=rf"carries 15 positions of history.* last {layer.conv_reach} positions, as"
    ):
        layer(*new)
    make_layer(conv=False)(*new)  # nothing else reads what is not in segments and tokens


@pytest.mark.parametrize("gate", ["plain", "none"])
@pytest.mark.parametrize("init", ["zero", "scalar"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attaching_changes_nothing_and_learns(init: str, dtype: torch.dtype, gate: str) -> None:
    layer = GraftLayer(D, V, fallback=make_fallback(), output_scale=init == "scalar", gate=gate)
    initialize(layer, init, seed=0)
    hidden, values, inverse, segments, tokens = make_inputs()
    hidden = hidden.to(dtype)
    out, _ = layer(hidden, values, inverse, segments, tokens)
    assert out.dtype == dtype
    assert torch.equal(out, hidden)
    (out.float() * torch.randn(out.shape)).sum().backward()
    learners = [layer.memory_value.weight, layer.fallback_value.weight] if init == "zero" else [layer.scale]
    for parameter in learners:
        assert parameter.grad.abs().max() > 0


@pytest.mark.parametrize("where", ["everywhere", "at_misses"])
@pytest.mark.parametrize("source", ["memory", "fallback"])
def test_a_batch_of_one_source_keeps_every_gradient(source: str, where: str) -> None:
    layer = make_layer()
    hidden, values, inverse, segments, tokens = make_inputs()
    inverse = torch.full_like(inverse, -1) if source == "fallback" else inverse.clamp_min(0)
    values = values[:0] if source == "fallback" else values
    misses = listed(inverse) if where == "at_misses" else None
    out, _ = layer(hidden, values, inverse, segments, tokens, misses_M=misses)
    out.sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())
    unused = layer.memory_key if source == "fallback" else layer.fallback_key
    assert torch.equal(unused.weight.grad, torch.zeros_like(unused.weight))


def test_dirty_rows_behind_misses_do_not_leak() -> None:
    layer = make_layer()
    hidden, values, inverse, segments, tokens = make_inputs()
    dirty = torch.cat([values, torch.full((3, V), float("nan"))])
    clean, _ = layer(hidden, values, inverse, segments, tokens)
    out, _ = layer(hidden, dirty, inverse, segments, tokens)
    assert torch.equal(clean, out)


def test_bf16_model_keeps_gate_and_sum_in_float32() -> None:
    layer = make_layer()
    hidden, values, inverse, segments, tokens = make_inputs()
    seen = {}

    def observe(hidden_BTSD, alpha, update, written) -> None:
        seen.update(alpha=alpha, update=update, written=written)

    out, gated = layer.bfloat16()(hidden.bfloat16(), values.bfloat16(), inverse, segments, tokens, observer=observe)
    assert seen["alpha"].dtype == seen["update"].dtype == gated.dtype == torch.float32
    expected = (hidden.bfloat16().float() + seen["update"].squeeze(2)).bfloat16()
    assert torch.equal(out, expected)


def test_names_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ArgumentError, match="gate: expected one of plain, signed_sqrt, none, found 'signed-sqrt'"):
        GraftLayer(8, 8, gate="signed-sqrt")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="init: expected one of zero, scalar, scratch, found 'zeros'"):
        initialize(GraftLayer(8, 8), "zeros", seed=0)  # type: ignore[arg-type]


def test_wrong_width_is_refused() -> None:
    layer = make_layer()
    hidden, values, inverse, segments, tokens = make_inputs()
    with pytest.raises(ArgumentError, match=r"values_UV must be \(U, \d+\), .* take memory.floats\(\)\[:, tap\]"):
        layer(hidden, values[:, None], inverse, segments, tokens)
    for other in ((inverse[:, 1:], segments), (inverse, segments[:, 1:])):
        with pytest.raises(ArgumentError, match=r"inverse_BT must be of the .* positions of the hidden state"):
            layer(hidden, values, *other, tokens)
    with pytest.raises(ArgumentError, match=r"\(B, T, 8\)"):
        layer(hidden[..., :7], values, inverse, segments, tokens)
    with pytest.raises(ArgumentError, match="tokens_BH is missing"):
        layer(hidden, values, inverse, segments)
    with pytest.raises(ArgumentError, match="values_UV is missing"):
        layer(hidden, None, inverse, segments, tokens)
    with pytest.raises(ArgumentError, match="no trained table"):
        layer(hidden, values, inverse, segments, tokens, rows_U=TRAINED_ROWS)
    with pytest.raises(ArgumentError, match="takes rows_U in place of values_UV"):
        make_layer(num_trainable_rows=9)(hidden, values, inverse, segments, tokens)
