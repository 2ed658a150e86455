"""Causal depthwise convolution that never reads across a segment boundary."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from memgraft.nn.gate import RMSNorm, rms_scale


class SegmentConv(nn.Module):
    """``SiLU(DepthwiseConv(RMSNorm(U)))`` with zeros beyond the left edge of each segment.

    Written as ``kernel`` shifted multiply-adds in float32: a fused ``conv1d`` cannot mask by segment and autocast
    would lower it to bf16. ``weight[j]`` multiplies the input ``j * dilation`` positions back, so ``weight[0]`` is the
    current one.
    """

    def __init__(self, dim: int, kernel: int = 4, dilation: int = 3, streams: int = 1) -> None:
        super().__init__()
        self.kernel, self.dilation = kernel, dilation
        self.reach = (kernel - 1) * dilation
        self.norm = RMSNorm(dim, streams)
        self.weight = nn.Parameter(torch.zeros(kernel, streams, dim))

    def forward(self, inputs_BHSD: Tensor, segments_BH: Tensor, num_new: int) -> Tensor:
        """Convolve and return the last ``num_new`` positions.

        Args:
            inputs_BHSD: gated values U with any history in front, (B, H, S, D).
            segments_BH: segment ids of the same positions, (B, H) integers.
            num_new: positions to compute, at the end; those before are only read.

        Returns:
            (B, num_new, S, D) float32.
        """
        # The norm's weight goes into the taps, its scale into the mask: one pass over the inputs less for each tap.
        weight = self.weight.float() * self.norm.weight.float()
        total = inputs_BHSD.shape[1]
        first = total - num_new
        # Positions further back than the reach are never read: normalising them would be wasted.
        start = max(0, first - self.reach)
        inputs, segments = inputs_BHSD[:, start:], segments_BH[:, start:]
        scales = rms_scale(inputs, self.norm.eps)
        first -= start
        total -= start
        here = segments[:, first:]
        out = inputs[:, first:] * scales[:, first:] * weight[0]
        for tap in range(1, self.kernel):
            shift = tap * self.dilation
            # Reading from position p - shift: those before the tensor's start contribute nothing.
            missing = max(0, shift - first)
            if missing >= num_new:
                continue
            low, high = first + missing - shift, total - shift
            same = (segments[:, low:high] == here[:, missing:])[..., None, None]
            read = inputs[:, low:high] * torch.where(same, scales[:, low:high], 0.0)
            if missing:
                read = functional.pad(read, (0, 0, 0, 0, missing, 0))
            out = torch.addcmul(out, read, weight[tap])
        return functional.silu(out)
