"""RMS norms and the gate, in float32 whatever the model's dtype."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from memgraft.config import Gate

NORM_EPS = 1e-6
# Engram's released code keeps the square root's slope finite at a = 0.
SIGNED_SQRT_FLOOR = 1e-6


def widened(x: Tensor) -> Tensor:
    """In float32 at least: what is float64 stays so."""
    return x if x.dtype == torch.float64 else x.float()


def rms_scale(x: Tensor, eps: float = NORM_EPS) -> Tensor:
    """What RMS normalisation multiplies by: (..., D) any float dtype -> (..., 1) float32 (float64 of float64)."""
    # One fused pass; squaring and averaging would write a tensor of x's size.
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=kind)
    return torch.rsqrt(norm.square() / x.shape[-1] + eps)


def rms_normalize(x: Tensor, eps: float = NORM_EPS) -> Tensor:
    """Scales the last dimension to unit root mean square: (..., D) any float dtype -> (..., D) float32."""
    return x * rms_scale(x, eps)


class NormWeight(nn.Module):
    """The learned weight of an RMS norm, one vector per stream; calling it gives the weight, (S, D) float32.

    What it weighs is normalised by :func:`rms_scale`, a number per vector, in float32: ``torch.nn.RMSNorm`` computes in
    the weights' dtype. It is called and not read, so that hooks that bring an offloaded weight run.
    """

    def __init__(self, dim: int, streams: int = 1, eps: float = NORM_EPS) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(streams, dim))

    def forward(self) -> Tensor:
        """The weight, (S, D) float32."""
        return widened(self.weight)


def gate(keys: Tensor, queries: Tensor, scales: Tensor, kind: Gate) -> Tensor:
    """The gate alpha in (0, 1): a sigmoid of the scaled dot product of normalised keys and hidden states.

    ``<RMSNorm(k), RMSNorm(h)>`` is taken as ``<k * weights, h> * scales``, which normalises numbers and not vectors.

    Args:
        keys: (..., D) float32: the raw keys times both norms' weights.
        queries: (..., D) the hidden state, any float dtype.
        scales: (..., 1) float32: the product of both :func:`rms_scale`.
        kind: ``"plain"`` or ``"signed_sqrt"`` (docs/METHOD.md, section 5).

    Returns:
        (..., 1) float32.
    """
    scores = (keys * queries).sum(dim=-1, keepdim=True) * scales / math.sqrt(keys.shape[-1])
    if kind == "signed_sqrt":
        scores = scores.sign() * scores.abs().clamp_min(SIGNED_SQRT_FLOOR).sqrt()
    return scores.sigmoid()
