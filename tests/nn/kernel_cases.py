"""The fused kernel beside the torch path: values and gradients, group by group.

``test_kernel.py`` runs a group under ``TRITON_INTERPRET=1`` on the CPU, ``tests/gpu`` on a card.
    python tests/nn/kernel_cases.py GROUP [DEVICE]          prints ``same`` after the last case
"""

from __future__ import annotations

import copy
import logging
import sys

import test_graft_layer
import torch
from test_graft_layer import CASES, D

from memgraft.nn import kernel, path

PLAIN = ["plain", "signed_sqrt", "fallback_alone", "raw_values"]
DEVICE = "cpu"


def make_layer(**options):
    return test_graft_layer.make_layer(**options).to(DEVICE)


def make_inputs(**options):
    return tuple(tensor.to(DEVICE) for tensor in test_graft_layer.make_inputs(**options))


def trained_rows():
    """Numbers of five rows of a trained table."""
    return test_graft_layer.TRAINED_ROWS.to(DEVICE)


def both(layer, arguments, ways=(False, True), **more):
    """Outputs and gradients of the torch path and of the kernel."""
    results = []
    for fused in ways:
        twin = copy.deepcopy(layer)
        twin.kernel = fused
        hidden = arguments[0].clone().requires_grad_()
        written, gated = twin(hidden, *arguments[1:], **more)
        weights = torch.linspace(-1, 1, written.numel(), device=written.device).view(written.shape)
        loss = (written.float() * weights).sum()
        if gated is None:
            gated = torch.zeros(())
        else:
            loss = loss + (gated * weights.view(gated.shape)).square().sum()
        loss.backward()
        gradients = {name: p.grad for name, p in twin.named_parameters() if p.grad is not None}
        results.append((written.detach(), gated.detach(), hidden.grad, gradients))
    return results


def close(results, *, tolerance=2e-5):
    plain, fused = results
    for expected, found in zip(plain[:3], fused[:3], strict=True):
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    assert plain[3].keys() == fused[3].keys()
    for name, expected in plain[3].items():
        scale = float(expected.to_dense().abs().max()) + 1e-6
        torch.testing.assert_close(
            fused[3][name].to_dense() / scale, expected.to_dense() / scale, rtol=0, atol=tolerance * 5, msg=name
        )


def shapes(names):
    for name in names:
        options = CASES[name]
        layer = make_layer(**options)
        hidden, values, inverse, segments, tokens = make_inputs(streams=options.get("streams", 1), length=17)
        if layer.value_dim is None:
            inverse = torch.full_like(inverse, -1)
        given = values if layer.value_dim is not None else None
        misses = (inverse.flatten() < 0).nonzero().squeeze(1)
        given, rows = (None, trained_rows()) if layer.rows is not None else (given, None)
        close(both(layer, (hidden, given, inverse, segments, tokens), misses_M=misses, rows_U=rows))
        print(name, flush=True)


def edges():
    hidden, values, inverse, segments, tokens = make_inputs(length=6)
    for fallback in (True, False):
        layer = make_layer(fallback=fallback)
        for rows in (torch.full_like(inverse, -1), torch.full_like(inverse, 2)):
            close(both(layer, (hidden, values, rows, segments, tokens)))
            close(both(layer, (hidden, values, rows, segments, tokens), keep_gated=False))
        close(both(layer, (hidden[:, :1], values, inverse[:, :1], segments[:, :1], tokens[:, :1])))


def narrow():
    """bf16 hidden states over bf16 and over float32 weights, fp16 ones; streams and trained rows."""
    for dtype, weights, options in (
        (torch.bfloat16, torch.bfloat16, {}),
        (torch.bfloat16, torch.float32, {"streams": 2, "gate": "signed_sqrt"}),
        (torch.float16, torch.float16, {"num_trainable_rows": 9, "conv": False, "output_scale": True}),
    ):
        layer = make_layer(**options).to(weights)
        hidden, values, inverse, segments, tokens = make_inputs(streams=layer.streams, length=12)
        values, rows = (None, trained_rows()) if layer.rows is not None else (values, None)
        close(both(layer, (hidden.to(dtype), values, inverse, segments, tokens), rows_U=rows), tolerance=2e-2)
        print(dtype, flush=True)


def chosen():
    """The kernel by itself: its self-check agrees, compiled calls too, and nothing else has to be said."""
    seen, log = [], logging.getLogger("memgraft")
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    if DEVICE == "cpu":
        path.no_card = lambda device: None
    for options in ({}, {"streams": 2, "gate": "signed_sqrt", "output_scale": True}):
        layer = make_layer(**options)
        inputs = make_inputs(streams=layer.streams, length=6)
        assert "fused kernel where its self-check agrees" in repr(layer)
        found = both(layer, inputs, ways=(False, None))
        assert len(seen) == 1
        assert "gate and mix by the fused kernel" in seen.pop()
        # The same bits as the kernel's, and so not the torch path's.
        for one, other in zip(found[1][:2], both(layer, inputs, ways=(True,))[0][:2], strict=True):
            assert torch.equal(one, other)
        close(found)
    whole = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(whole(*inputs)[0], found[1][0])
        assert len(seen) == 1  # without gradients it is another kind of call


def decoding():
    layer = make_layer()
    layer.kernel = True
    hidden, values, inverse, segments, tokens = make_inputs(length=14)
    with torch.no_grad():
        whole, gated = layer(hidden, values, inverse, segments, tokens)
        state = gated[:, :11]
        for t in range(11, 14):
            one, new = layer(
                hidden[:, t : t + 1], values, inverse[:, t : t + 1], segments[:, : t + 1], tokens[:, : t + 1],
                conv_state_BCSD=state,
            )  # fmt: skip
            torch.testing.assert_close(one, whole[:, t : t + 1], rtol=1e-5, atol=1e-5)
            state = torch.cat([state, new], dim=1)


def traced():
    layer = make_layer()
    arguments = make_inputs(length=4)
    hidden = arguments[0].detach()
    rows = layer.projected_rows(arguments[1], None, *arguments[2:5], None)
    given = (hidden.unsqueeze(2), rows.keys_NSD.detach(), rows.scales_NS.detach(), rows.values_ND.detach())
    given = tuple(x.requires_grad_() for x in given)
    rest = (rows.picked_BT, arguments[2] >= 0, arguments[3], layer.conv.taps().detach(), None, None, 3, False)
    torch.library.opcheck(kernel.gate_and_mix, (*given, *rest))


def operands(layer, length, *, unique=3):
    """What `gate_and_mix` takes, in float64, with the layer's taps and factor: packed segments, padding, a miss."""
    generator = torch.Generator().manual_seed(17)
    kind, streams = torch.float64, layer.streams

    def drawn(*shape):
        return torch.randn(shape, generator=generator, dtype=kind).to(DEVICE).requires_grad_()

    hidden, keys, values = drawn(2, length, streams, D), drawn(unique, streams, D), drawn(unique, D)
    scales = drawn(unique, streams).detach().abs().add(0.5).requires_grad_()
    picked = torch.randint(0, unique, (2, length), generator=generator).to(DEVICE)
    segments = torch.zeros(2, length, dtype=torch.int32, device=DEVICE)
    segments[0, length // 2 :] = 1
    segments[1, 0] = -1
    sourced = segments >= 0
    sourced[0, 1] = False
    taps = None if layer.conv is None else layer.conv.taps().detach().to(kind).requires_grad_()
    factor = None if layer.scale is None else layer.scale.detach().to(kind).requires_grad_()
    dilation = 1 if layer.conv is None else layer.conv.dilation
    return (
        hidden, keys, scales, values, picked, sourced, segments, taps, factor, None, dilation,
        layer.gate_kind == "signed_sqrt",
    )  # fmt: skip


def gradients(names=("plain", "signed_sqrt", "no_conv", "kernel3_dilation2", "streams", "scale")):
    """The backward against differences of the forward, in float64; more than one run of positions too."""
    for name in names:
        layer = make_layer(fallback=False, **CASES[name])
        # One of the two outputs unused is asked once, since the interpreter takes its time.
        given, unused = operands(layer, 17 if name == "no_conv" else 4), name == "plain"
        # A card adds up the gradients of a row in any order.
        assert torch.autograd.gradcheck(
            kernel.gate_and_mix, given, fast_mode=True, check_undefined_grad=unused, nondet_tol=1e-9
        )
        print(name, flush=True)


def compiled():
    """One whole graph forward and backward, for lengths that it was not traced with too."""
    layer = make_layer()
    layer.kernel = True
    call = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (4, 6):
        hidden, *rest = make_inputs(length=length)
        found = []
        for one in (call, layer):
            layer.zero_grad()
            own = hidden.clone().requires_grad_()
            written, gated = one(own, *rest, misses_M=(rest[1].flatten() < 0).nonzero().squeeze(1))
            (written.square().sum() + gated.sum()).backward()
            held = {name: p.grad.clone() for name, p in layer.named_parameters() if p.grad is not None}
            found.append((written.detach(), gated.detach(), own.grad, held))
        close(found[::-1], tolerance=1e-6)


GROUPS = {
    "plain": lambda: shapes(PLAIN),
    "shapes": lambda: shapes(CASES),
    "edges": edges,
    "narrow": narrow,
    "chosen": chosen,
    "decoding": decoding,
    "traced": traced,
    "gradients": gradients,
    "compiled": compiled,
}


def main(group, device="cpu"):
    global DEVICE
    DEVICE = device
    torch.set_num_threads(1)
    assert (device == "cpu") == kernel.INTERPRETED
    assert D <= 64
    GROUPS[group]()


if __name__ == "__main__":
    main(*sys.argv[1:])
    print("same")
