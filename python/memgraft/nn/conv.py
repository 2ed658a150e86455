"""Causal depthwise convolution that never reads across a segment boundary."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from memgraft.nn.gate import NORM_EPS, NormWeight, rms_scale, widened


class SegmentConv(nn.Module):
    """``SiLU(DepthwiseConv(RMSNorm(U)))`` with zeros beyond the left edge of each segment.

    ``weight[j]`` multiplies the input ``j * dilation`` positions back, so ``weight[0]`` is the current one.
    """

    def __init__(self, dim: int, kernel: int = 4, dilation: int = 3, streams: int = 1) -> None:
        super().__init__()
        self.kernel, self.dilation = kernel, dilation
        self.reach = (kernel - 1) * dilation
        self.norm = NormWeight(dim, streams)
        self.weight = nn.Parameter(torch.zeros(kernel, streams, dim))

    def taps(self) -> Tensor:
        """The taps with the norm's weight in them, (kernel, S, D) float32."""
        norm: Tensor = self.norm()
        return widened(self.weight) * norm

    def forward(self, inputs_BHSD: Tensor, segments_BH: Tensor, num_new: int) -> Tensor:
        """Convolves and returns the last ``num_new`` positions.

        Args:
            inputs_BHSD: gated values U with any history in front, (B, H, S, D) float32.
            segments_BH: segment ids of the same positions, (B, H) integers.
            num_new: positions to compute, at the end; those before are only read.

        Returns:
            (B, num_new, S, D) float32.
        """
        # Positions further back than the reach are never read: normalising them would be wasted.
        start = max(0, inputs_BHSD.shape[1] - num_new - self.reach)
        inputs, segments = inputs_BHSD[:, start:], segments_BH[:, start:]
        weight = self.taps().to(inputs.dtype)
        return functional.silu(shifted_sums(inputs, weight, segments, num_new, self.dilation, self.norm.eps))


def shifted_sums(
    inputs_BHSD: Tensor, taps_KSD: Tensor, segments_BH: Tensor, num_new: int, dilation: int, eps: float = NORM_EPS
) -> Tensor:
    """The convolution before its SiLU, (B, num_new, S, D); see `SegmentConv.forward` and `SegmentConv.taps`."""
    convolved: Tensor = _ShiftedSums.apply(inputs_BHSD, taps_KSD, segments_BH, num_new, dilation, eps)
    return convolved


class _ShiftedSums(torch.autograd.Function):
    """RMS normalisation and one shifted multiply-add per tap, with the backward written out.

    A fused ``conv1d`` cannot mask by segment, and autograd's own backward of the shifts takes several times the passes
    over memory: a full-size gradient for every slice.
    """

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, segments: Tensor, num_new: int, dilation: int, eps: float
    ) -> Tensor:
        scales = rms_scale(inputs, eps)
        ctx.save_for_backward(inputs, scales, weight, segments)
        ctx.num_new, ctx.dilation = num_new, dilation
        first = inputs.shape[1] - num_new
        out = inputs[:, first:] * scales[:, first:] * weight[0]
        for tap, read, written, same in _taps(segments, len(weight), num_new, dilation):
            normed = inputs[:, read] * torch.where(same, scales[:, read], 0.0)
            out[:, written].addcmul_(normed, weight[tap])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        inputs, scales, weight, segments = ctx.saved_tensors
        first = inputs.shape[1] - ctx.num_new
        normed = inputs * scales
        of_normed = torch.zeros_like(inputs)
        of_weight = torch.zeros_like(weight)
        of_normed[:, first:].addcmul_(gradient, weight[0])
        of_weight[0] = (gradient * normed[:, first:]).sum(dim=(0, 1))
        for tap, read, written, same in _taps(segments, len(weight), ctx.num_new, ctx.dilation):
            inside = gradient[:, written] * same
            of_weight[tap] = (inside * normed[:, read]).sum(dim=(0, 1))
            of_normed[:, read].addcmul_(inside, weight[tap])
        # d normed / d input = scale - normed^2 scale / D, over the last dimension.
        shared = (of_normed * normed).mean(dim=-1, keepdim=True)
        of_inputs = of_normed.addcmul_(normed, shared, value=-1.0).mul_(scales)
        return of_inputs, of_weight, None, None, None, None


def _taps(segments: Tensor, kernel: int, num_new: int, dilation: int) -> Iterator[tuple[int, slice, slice, Tensor]]:
    """Per tap beyond the current position: what is read, what is written, and where both lie in one segment.

    Slices of the H positions and of the ``num_new``; (B, positions, 1, 1) bool. Taps that read before the tensor's
    start everywhere are left out.
    """
    total = segments.shape[1]
    first = total - num_new
    for tap in range(1, kernel):
        shift = tap * dilation
        missing = max(0, shift - first)
        if missing < num_new:
            read, written = slice(first + missing - shift, total - shift), slice(missing, num_new)
            same = segments[:, read] == segments[:, first + missing :]
            yield tap, read, written, same[..., None, None]
