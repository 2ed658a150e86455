"""The fused kernel beside the torch path: values and gradients, group by group.

``test_kernel.py`` runs a group under ``TRITON_INTERPRET=1`` on the CPU, ``tests/gpu`` on a card.
    python tests/nn/kernel_cases.py GROUP [DEVICE]          prints ``same`` after the last case
"""

from __future__ import annotations

import copy
import sys

import test_graft_layer
import torch
from test_graft_layer import CASES, D

from memgraft.nn import kernel

PLAIN = ["plain", "signed_sqrt", "fallback_alone", "raw_values"]
DEVICE = "cpu"


def make_layer(**options):
    return test_graft_layer.make_layer(**options).to(DEVICE)


def make_inputs(**options):
    return tuple(tensor.to(DEVICE) for tensor in test_graft_layer.make_inputs(**options))


def both(layer, arguments, **more):
    """Outputs and gradients of the torch path and of the kernel."""
    results = []
    for fused in (False, True):
        twin = copy.deepcopy(layer)
        twin.kernel = fused
        hidden = arguments[0].clone().requires_grad_()
        written, gated = twin(hidden, *arguments[1:], **more)
        weights = torch.linspace(-1, 1, written.numel(), device=written.device).view(written.shape)
        ((written.float() * weights).sum() + (gated * weights.view(gated.shape)).square().sum()).backward()
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
        if layer.rows is not None:
            values = torch.tensor([8, 3, 0, 5, 1], device=DEVICE)
        if layer.value_dim is None:
            inverse = torch.full_like(inverse, -1)
        given = values if layer.value_dim is not None else None
        misses = (inverse.flatten() < 0).nonzero().squeeze(1)
        close(both(layer, (hidden, given, inverse, segments, tokens), misses_M=misses))
        print(name, flush=True)


def edges():
    hidden, values, inverse, segments, tokens = make_inputs(length=6)
    for fallback in (True, False):
        layer = make_layer(fallback=fallback)
        for rows in (torch.full_like(inverse, -1), torch.full_like(inverse, 2)):
            close(both(layer, (hidden, values, rows, segments, tokens)))
        close(both(layer, (hidden[:, :1], values, inverse[:, :1], segments[:, :1], tokens[:, :1])))
    narrow = make_layer().bfloat16()
    close(both(narrow, (hidden.bfloat16(), values, inverse, segments, tokens)), tolerance=2e-2)


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
    rows = layer._read(*arguments[1:4], arguments[4], None)
    given = (hidden.unsqueeze(2), rows.keys_NSD.detach(), rows.scales_NS1.squeeze(-1).detach(), rows.values_ND.detach())
    given = tuple(x.requires_grad_() for x in given)
    rest = (rows.picked_BT, arguments[2] >= 0, arguments[3], layer.conv.taps().detach(), None, None, 3, False)
    torch.library.opcheck(kernel.gate_and_mix, (*given, *rest))


GROUPS = {
    "plain": lambda: shapes(PLAIN),
    "shapes": lambda: shapes(CASES),
    "edges": edges,
    "decoding": decoding,
    "traced": traced,
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
