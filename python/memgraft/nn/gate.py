"""RMS norms and the gate, in float32 whatever the model's dtype."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from memgraft.config import Gate

NORM_EPS = 1e-6
# Engram's released code keeps the square root's slope finite at a = 0.
SIGNED_SQRT_FLOOR = 1e-6


def rms_normalize(x: Tensor, eps: float = NORM_EPS) -> Tensor:
    """Scale the last dimension to unit root mean square, in float32. Shapes: (..., D) -> (..., D) float32."""
    x = x.float()
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps)


class RMSNorm(nn.Module):
    """RMSNorm with a learned weight per stream; computes and returns float32.

    ``torch.nn.RMSNorm`` computes in the input's dtype under bf16 weights; the gate needs float32.
    """

    def __init__(self, dim: int, streams: int = 1, eps: float = NORM_EPS) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(streams, dim))

    def forward(self, x_BTSD: Tensor) -> Tensor:
        """(..., S, D) any float dtype -> (..., S, D) float32."""
        return rms_normalize(x_BTSD, self.eps) * self.weight.float()


def gate(keys: Tensor, queries: Tensor, kind: Gate) -> Tensor:
    """The gate alpha in (0, 1): a sigmoid of the scaled dot product of normalised keys and hidden states.

    Args:
        keys: (..., D) float32, normalised.
        queries: (..., D) float32, normalised.
        kind: ``"plain"`` or ``"signed_sqrt"`` (SPEC section 5).

    Returns:
        (..., 1) float32.
    """
    scores = (keys * queries).sum(dim=-1, keepdim=True) / math.sqrt(keys.shape[-1])
    if kind == "signed_sqrt":
        scores = scores.sign() * scores.abs().clamp_min(SIGNED_SQRT_FLOOR).sqrt()
    return scores.sigmoid()
