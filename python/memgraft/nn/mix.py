"""Gate and mix of a site as torch operations: what runs without a card, and the slow twin of `memgraft.nn.kernel`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from memgraft.config import Gate
from memgraft.nn.gate import gate, rms_scale, widened

# (B, H, S, D) gated values with history in front, (B, H) segments, T -> (B, T, S, D): `SegmentConv`.
Convolve = Callable[[Tensor, Tensor, int], Tensor]


def gate_and_mix(
    hidden_BTSD: Tensor,
    keys_NSD: Tensor,
    scales_NS: Tensor,
    values_ND: Tensor,
    picked_BT: Tensor,
    sourced_BT: Tensor,
    segments_BH: Tensor,
    convolve: Convolve | None,
    factor: Tensor | None,
    state_BCSD: Tensor | None,
    kind: Gate,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The site's write, from projected rows.

    Args:
        hidden_BTSD: hidden states, any float dtype.
        keys_NSD: projected keys times both norms' weights, float32.
        scales_NS: the keys' RMS scales, float32.
        values_ND: projected values, any float dtype.
        picked_BT: each position's row, integers.
        sourced_BT: bool, positions that have a source.
        segments_BH: integers, at least C + T of them.
        convolve: the convolution, or ``None`` without one.
        factor: the output's scalar in float32, or ``None``.
        state_BCSD: gated values of the history, or ``None``.
        kind: the gate's form.

    Returns:
        Hidden states (B, T, S, D) in their dtype; gated values (B, T, S, D), gates (B, T, S, 1) and the update
        (B, T, S, D) in float32.
    """
    batch, length, streams, width = hidden_BTSD.shape
    picked = picked_BT.flatten()
    keys_BTSD = functional.embedding(picked, keys_NSD.flatten(1)).view(batch, length, streams, width)
    scales_BTS1 = scales_NS.index_select(0, picked).view(batch, length, streams, 1)
    alpha_BTS1 = gate(keys_BTSD, hidden_BTSD, scales_BTS1 * rms_scale(hidden_BTSD), kind)
    alpha_BTS1 = torch.where(sourced_BT[..., None, None], alpha_BTS1, 0.0)
    gated_BTSD = alpha_BTS1 * functional.embedding(picked, values_ND).view(batch, length, 1, width)
    update_BTSD = gated_BTSD
    if convolve is not None:
        inputs = gated_BTSD
        if state_BCSD is not None:
            inputs = torch.cat([state_BCSD.to(inputs.dtype), inputs], dim=1)
        update_BTSD = gated_BTSD + convolve(inputs, segments_BH[:, -inputs.shape[1] :], length)
    if factor is not None:
        update_BTSD = update_BTSD * factor
    written_BTSD = (widened(hidden_BTSD) + update_BTSD).to(hidden_BTSD.dtype)
    return written_BTSD, gated_BTSD, alpha_BTS1, update_BTSD
