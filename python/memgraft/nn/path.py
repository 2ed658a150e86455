"""Whether a site's gate and mix run as the fused kernel or as torch operations, and why.

The kernel runs by itself on CUDA tensors where Triton is there, for the shapes and dtypes that it is made for. Before
its first use for a shape it is compared with the torch path once, on a few positions: a card, driver or compiler on
which it fails takes the torch path, and the log says why.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from typing import NamedTuple

import torch
from torch import Tensor

from memgraft.names import LOG_NAME
from memgraft.nn.conv import shifted_sums
from memgraft.nn.gate import rms_scale
from memgraft.nn.mix import gate_and_mix

FUSED_GATES = ("plain", "signed_sqrt")
"""Gates that the kernel has a formula for; every other runs as torch operations."""
HAS_TRITON = importlib.util.find_spec("triton") is not None
# A program of the kernel holds the whole width at all taps in registers: padded taps x padded width numbers a tensor.
MAX_TILE = 32_768
# Triton's own limit of numbers a tensor.
_TRITON_TILE = 1 << 20
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_MIN_CAPABILITY = (8, 0)
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
_log = logging.getLogger(LOG_NAME)


class SiteShape(NamedTuple):
    """What the kernel is compiled for.

    Attributes:
        width: D.
        streams: S.
        taps: K, 0 without a convolution.
        dilation: of the convolution.
        signed: whether the gate is ``signed_sqrt``.
        scaled: whether the output has a scalar.
    """

    width: int
    streams: int
    taps: int
    dilation: int
    signed: bool
    scaled: bool

    @property
    def tile(self) -> int:
        """Numbers that a program's largest tensors hold."""
        return _power_of_two(max(1, self.taps)) * _power_of_two(self.width)


# Why a kind of call does not take the kernel, None where it does: one self-check for each kind.
_found: dict[tuple[SiteShape, torch.device, torch.dtype, torch.dtype, bool], str | None] = {}


# Compilers take the answer as it is and look at nothing inside.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def refusal(
    site: tuple[int, int, int, int, bool, bool],
    device: torch.device,
    hidden_dtype: torch.dtype,
    value_dtype: torch.dtype,
    trains: bool,
) -> str | None:
    """Why such a call takes the torch path by itself, or ``None`` where it takes the kernel.

    Args:
        site: the fields of a `SiteShape`.
        device: where the hidden states are.
        hidden_dtype: theirs.
        value_dtype: of the projected values.
        trains: whether gradients will be asked for.
    """
    shape = SiteShape(*site)
    reason = no_card(device) or _unsuitable(shape, hidden_dtype, value_dtype)
    if reason is not None:
        return reason
    call = (shape, device, hidden_dtype, value_dtype, trains)
    if call not in _found:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return "a CUDA graph is recorded before the kernel was tried: make one call before it"
        if type(torch.empty(0, device=device)) is not torch.Tensor:
            return "the call is traced with tensors that hold nothing, before the kernel was tried"
        _found[call] = _differs(*call)
        if _found[call] is None:
            _log.info("gate and mix by the fused kernel on %s, width %d, %s", device, shape.width, hidden_dtype)
    return _found[call]


def no_card(device: torch.device) -> str | None:
    """Why a device cannot run the kernel by itself, or ``None``."""
    if device.type != "cuda":
        return f"tensors on {device.type}, the kernel needs CUDA"
    return _unfit(device)


@functools.cache
def _unfit(device: torch.device) -> str | None:
    if not torch.cuda.is_available():
        return "no card here"
    if torch.version.hip is not None:
        return "the kernel was never run under ROCm"
    if not HAS_TRITON:
        return "the package triton is not installed"
    capability = torch.cuda.get_device_capability(device)
    if capability < _MIN_CAPABILITY:
        return f"compute capability {'.'.join(map(str, capability))}, the kernel is made for 8.0 and newer"
    return None


def impossible(shape: SiteShape, device: torch.device) -> str | None:
    """Why the kernel cannot run even where it is asked for, or ``None``."""
    if not HAS_TRITON:
        return "expected the package triton, found none; pip install triton"
    from memgraft.nn.kernel import INTERPRETED

    if device.type != "cuda" and not INTERPRETED:
        return f"expected a CUDA tensor, found one on {device}"
    if shape.tile > _TRITON_TILE:
        return f"expected at most {_TRITON_TILE} numbers a position (taps x width), found {shape.tile}"
    return None


def _unsuitable(shape: SiteShape, hidden_dtype: torch.dtype, value_dtype: torch.dtype) -> str | None:
    if hidden_dtype not in _DTYPES or value_dtype not in _DTYPES:
        return f"hidden states in {hidden_dtype} and values in {value_dtype}"
    if shape.tile > MAX_TILE:
        return f"{shape.tile} numbers a position (taps x width), the registers hold {MAX_TILE}"
    return None


def _differs(
    shape: SiteShape, device: torch.device, hidden_dtype: torch.dtype, value_dtype: torch.dtype, trains: bool
) -> str | None:
    """Runs kernel and torch path on a few positions; says how they differ or what failed, ``None`` if they agree."""
    try:
        with torch.inference_mode(False), torch.set_grad_enabled(trains), torch.autocast(device.type, enabled=False):
            found, expected = _both(shape, device, hidden_dtype, value_dtype, trains)
        tolerance = max(_TOLERANCE[hidden_dtype], _TOLERANCE[value_dtype])
        for name, right in expected.items():
            far = float(
                (found[name].double() - right.double()).abs().max() / right.double().abs().max().clamp_min(1e-6)
            )
            if not far <= tolerance:
                reason = f"its {name} differ from the torch path's by {far:.1e}, more than {tolerance:.0e}"
                break
        else:
            return None
    except Exception as error:
        # Whatever a compiler, driver or card raises: the other path is there.
        reason = (
            f"it failed with {type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error) else ''}"
        )
    _log.warning("the fused kernel is not used on %s for width %d: %s", device, shape.width, reason)
    return reason


def _both(
    shape: SiteShape, device: torch.device, hidden_dtype: torch.dtype, value_dtype: torch.dtype, trains: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    from memgraft.nn.kernel import gate_and_mix as fused

    generator = torch.Generator().manual_seed(0)
    length, rows = max(0, shape.taps - 1) * shape.dilation + 3, 3

    def drawn(*size: int, dtype: torch.dtype = torch.float32, by: float = 1.0) -> Tensor:
        return (torch.randn(size, generator=generator) * by).to(device, dtype).requires_grad_(trains)

    leaves = {
        "hidden states": drawn(1, length, shape.streams, shape.width, dtype=hidden_dtype),
        "keys": drawn(rows, shape.streams, shape.width),
        "values": drawn(rows, shape.width, dtype=value_dtype),
    }
    if shape.taps:
        leaves["taps"] = drawn(shape.taps, shape.streams, shape.width, by=0.3)
    if shape.scaled:
        leaves["scalar"] = drawn(by=0.7)
    hidden, keys, values = leaves["hidden states"], leaves["keys"], leaves["values"]
    taps, factor = leaves.get("taps"), leaves.get("scalar")
    scales = rms_scale(keys.detach()).squeeze(-1)
    picked = (torch.arange(length, device=device) % rows).view(1, length)
    sourced = picked.new_ones(picked.shape, dtype=torch.bool)
    sourced[0, 1] = False
    segments = torch.zeros(1, length, dtype=torch.int64, device=device)
    segments[0, 2:] = 1

    def convolve(inputs: Tensor, segments_BH: Tensor, num_new: int) -> Tensor:
        assert taps is not None
        return torch.nn.functional.silu(shifted_sums(inputs, taps, segments_BH, num_new, shape.dilation))

    ways = (
        gate_and_mix(
            hidden, keys, scales, values, picked, sourced, segments, convolve if shape.taps else None, factor, None,
            "signed_sqrt" if shape.signed else "plain",
        ),
        fused(
            hidden, keys, scales, values, picked, sourced, segments, taps, factor, None, shape.dilation, shape.signed
        ),
    )  # fmt: skip
    results: list[dict[str, Tensor]] = []
    for written, gated, *_ in ways:
        result = {"outputs": written.detach(), "gated values": gated.detach()}
        if trains:
            loss = (written.float().sin()).sum() + gated.sum()
            gradients = torch.autograd.grad(loss, list(leaves.values()))
            result |= {f"gradients of {name}": g for name, g in zip(leaves, gradients, strict=True)}
        results.append(result)
    return results[1], results[0]


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
