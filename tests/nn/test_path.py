"""Which way gate and mix are computed, and why."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from test_graft_layer import make_inputs, make_layer

from memgraft.errors import ArgumentError
from memgraft.nn import path


def call(layer):
    with torch.no_grad():
        return layer(*make_inputs(streams=layer.streams))


@pytest.fixture
def card(monkeypatch):
    """The CPU counts as a card, on which the kernel of course fails."""
    pytest.importorskip("triton")
    monkeypatch.setattr(path, "no_card", lambda device: None)


def test_without_a_card_the_torch_path_runs_and_says_so(caplog):
    layer = make_layer()
    assert layer.kernel is None
    assert "kernel=None (torch operations: tensors on cpu, the kernel needs CUDA)" in repr(layer)
    with caplog.at_level(logging.INFO, "memgraft"):
        call(layer)
    assert not caplog.records
    assert path.no_card(torch.device("cuda", 0)) is not None or torch.cuda.is_available()


def test_what_a_caller_asks_for():
    layer = make_layer()
    expected = call(layer)
    layer.kernel = False
    assert "switched off" in repr(layer)
    for found, right in zip(call(layer), expected, strict=True):
        assert torch.equal(found, right)
    layer.kernel = True
    with pytest.raises(ArgumentError, match=r"kernel=True: expected (a CUDA tensor|the package triton), found"):
        call(layer)
    # Telemetry wants what the kernel does not write, so that such calls take the torch path whatever is asked.
    seen = []
    layer(*make_inputs(), observer=lambda *tensors: seen.append(tensors))
    assert len(seen) == 1


def test_a_gate_without_a_formula_in_the_kernel_is_not_run_as_another(monkeypatch):
    # As a gate is that only its torch operations were written for.
    monkeypatch.setattr(path, "FUSED_GATES", ("plain",))
    layer = make_layer(gate="signed_sqrt")
    assert "torch operations: the kernel has no formula" in repr(layer)
    layer.kernel = True
    with pytest.raises(ArgumentError, match="kernel=True: the kernel has no formula for gate='signed_sqrt'"):
        call(layer)


def test_a_kernel_that_fails_is_left_alone(card, caplog):
    layer = make_layer(conv_kernel=5)
    with caplog.at_level(logging.WARNING, "memgraft"):
        found = call(layer)
        call(layer)
        call(copy.deepcopy(layer))
    # Tried once for a kind of call; below once more, where gradients are asked for.
    assert len(caplog.records) == 1
    assert "the fused kernel is not used on cpu for width 8: it failed with" in caplog.text
    layer.kernel = False
    assert torch.equal(call(layer)[0], found[0])
    layer.kernel = None
    with caplog.at_level(logging.WARNING, "memgraft"):
        layer(*make_inputs())
    assert len(caplog.records) == 2


def test_a_kernel_with_other_numbers_is_left_alone(card, caplog, monkeypatch):
    from memgraft.nn import kernel, mix

    def wrong(*arguments):
        *given, taps, factor, state, _dilation, signed = arguments[:12]
        assert taps is None
        written, *rest = mix.gate_and_mix(*given, None, factor, state, "signed_sqrt" if signed else "plain")
        return written * 1.01, *rest

    monkeypatch.setattr(kernel, "gate_and_mix", wrong)
    layer = make_layer(conv=False, streams=3, output_scale=True)
    with caplog.at_level(logging.WARNING, "memgraft"):
        found = call(layer)
    assert "its outputs differ from the torch path's by 1.0e-02, more than 1e-04" in caplog.text
    layer.kernel = False
    assert torch.equal(call(layer)[0], found[0])


@pytest.mark.parametrize("options", [{}, {"streams": 2, "gate": "signed_sqrt"}, {"output_scale": True, "conv": False}])
@pytest.mark.parametrize("trains", [False, True])
def test_a_kernel_that_agrees_is_taken(options, trains, card, caplog, monkeypatch):
    from memgraft.nn import conv, kernel, mix

    calls = []

    def right(*arguments):
        *given, taps, factor, state, dilation, signed = arguments[:12]
        calls.append(given[0].shape)

        def convolve(inputs, segments, num_new):
            return torch.nn.functional.silu(conv.shifted_sums(inputs, taps, segments, num_new, dilation))

        kind = "signed_sqrt" if signed else "plain"
        written, gated, alpha, _ = mix.gate_and_mix(*given, None if taps is None else convolve, factor, state, kind)
        return written, gated, alpha.squeeze(-1)

    monkeypatch.setattr(kernel, "gate_and_mix", right)
    layer = make_layer(conv_dilation=4 + trains, **options)
    with caplog.at_level(logging.INFO, "memgraft"), torch.set_grad_enabled(trains):
        found = layer(*make_inputs(streams=layer.streams))
        layer(*make_inputs(streams=layer.streams))
    # Once beside the torch path, then for both calls.
    assert len(calls) == 3
    assert calls[1] == (2, 17, layer.streams, 8)
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "gate and mix by the fused kernel on cpu, width 8, torch.float32" in caplog.text
    layer.kernel = False
    with torch.no_grad():
        expected = layer(*make_inputs(streams=layer.streams))
    torch.testing.assert_close(found[0].detach(), expected[0])


def test_what_it_is_not_made_for(card, caplog):
    site = (8, 1, 4, 3, False, False)
    cpu, single = torch.device("cpu"), torch.float32
    assert "torch.float64" in path.refusal(site, cpu, torch.float64, torch.float64, True)
    wide = (16_384, 1, 4, 3, False, False)
    assert "65536 numbers a position" in path.refusal(wide, cpu, single, single, False)
    assert not caplog.records
    vast = path.SiteShape(1 << 21, 1, 0, 1, False, False)
    assert "expected at most 1048576 numbers" in str(path.impossible(vast, torch.device("cuda")))


@pytest.mark.slow
def test_a_compiled_call_takes_the_answer_as_it_is(card, caplog):
    torch._dynamo.reset()
    layer = make_layer(conv_kernel=6)
    arguments = make_inputs()
    with caplog.at_level(logging.WARNING, "memgraft"):
        found, _ = torch.compile(layer, fullgraph=True, backend="eager")(*arguments)
    assert "is not used on cpu" in caplog.text
    layer.kernel = False
    torch.testing.assert_close(found, layer(*arguments)[0])
    torch._dynamo.reset()


def test_a_traced_call_does_not_try(card, caplog):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as mode:
        layer = make_layer(conv_kernel=7)
        arguments = [mode.from_tensor(tensor) if type(tensor) is torch.Tensor else tensor for tensor in make_inputs()]
        written, _ = layer(*arguments)
    assert written.shape == (2, 17, 8)
    assert not caplog.records
