"""RMS norms and the gate, in float32 whatever the model's dtype."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from memgraft.config import Gate

NORM_EPS = 1e-6
# Engram's released code keeps the square root's slope finite at a = 0.
SIGNED_SQRT_FLOOR = 1e-6


def rms_scale(x: Tensor, eps: float = NORM_EPS) -> Tensor:
    """What RMS normalisation multiplies by: (..., D) any float dtype -> (..., 1) float32."""
    # One fused pass; squaring and averaging would write a tensor of x's size.
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    return torch.rsqrt(norm.square() / x.shape[-1] + eps)


def rms_normalize(x: Tensor, eps: float = NORM_EPS) -> Tensor:
    """Scale the last dimension to unit root mean square: (..., D) any float dtype -> (..., D) float32."""
    return x * rms_scale(x, eps)


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


def gate(keys: Tensor, queries: Tensor, scales: Tensor, kind: Gate) -> Tensor:
    """The gate alpha in (0, 1): a sigmoid of the scaled dot product of normalised keys and hidden states.

    ``<RMSNorm(k), RMSNorm(h)>`` is taken as ``<k, h * weights> * scales``, which normalises numbers instead of vectors.

    Args:
        keys: (..., D) raw keys, any float dtype.
        queries: (..., D) float32: the hidden state times both norms' weights.
        scales: (..., 1) float32: the product of both :func:`rms_scale`.
        kind: ``"plain"`` or ``"signed_sqrt"`` (docs/METHOD.md, section 5).

    Returns:
        (..., 1) float32.
    """
    scores = (keys * queries).sum(dim=-1, keepdim=True) * scales / math.sqrt(keys.shape[-1])
    if kind == "signed_sqrt":
        scores = scores.sign() * scores.abs().clamp_min(SIGNED_SQRT_FLOOR).sqrt()
    return scores.sigmoid()
