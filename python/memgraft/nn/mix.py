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
    keys_NSD: Tensor | None,
    scales_NS: Tensor | None,
    values_ND: Tensor,
    picked_BT: Tensor,
    sourced_BT: Tensor,
    segments_BH: Tensor,
    convolve: Convolve | None,
    factor: Tensor | None,
    state_BCSD: Tensor | None,
    kind: Gate,
    target_BTSE: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The site's write, from projected rows.

    Args:
        hidden_BTSD: hidden states, any float dtype.
        keys_NSD: projected keys times both norms' weights, float32; ``None`` without a gate.
        scales_NS: the keys' RMS scales, float32; ``None`` without a gate.
        values_ND: projected values, any float dtype; (N, E) where a target is given.
        picked_BT: each position's row, integers.
        sourced_BT: bool, positions that have a source.
        segments_BH: integers, at least C + T of them.
        convolve: the convolution, or ``None`` without one.
        factor: the output's scalar in float32, or ``None``.
        state_BCSD: gated values of the history, or ``None``.
        kind: the gate's form.
        target_BTSE: what is written into, any float dtype; ``None``: the hidden states.

    Returns:
        The target (B, T, S, E), or the hidden states, in their dtype; gated values
        (B, T, S, D), gates (B, T, S, 1) and the update
        (B, T, S, D) in float32.
    """
    batch, length, streams, width = hidden_BTSD.shape
    target_BTSE = hidden_BTSD if target_BTSE is None else target_BTSE
    picked = picked_BT.flatten()
    if keys_NSD is None or scales_NS is None:
        alpha_BTS1 = sourced_BT[..., None, None].to(torch.float32).expand(-1, -1, streams, -1)
    else:
        keys_BTSD = functional.embedding(picked, keys_NSD.flatten(1)).view(batch, length, streams, width)
        scales_BTS1 = scales_NS.index_select(0, picked).view(batch, length, streams, 1)
        alpha_BTS1 = gate(keys_BTSD, hidden_BTSD, scales_BTS1 * rms_scale(hidden_BTSD), kind)
        alpha_BTS1 = torch.where(sourced_BT[..., None, None], alpha_BTS1, 0.0)
    gated_BTSD = alpha_BTS1 * functional.embedding(picked, values_ND).view(batch, length, 1, -1)
    update_BTSD = gated_BTSD
    if convolve is not None:
        inputs = gated_BTSD
        if state_BCSD is not None:
            inputs = torch.cat([state_BCSD.to(inputs.dtype), inputs], dim=1)
        update_BTSD = gated_BTSD + convolve(inputs, segments_BH[:, -inputs.shape[1] :], length)
    if factor is not None:
        update_BTSD = update_BTSD * factor
    written_BTSE = (widened(target_BTSE) + update_BTSD).to(target_BTSE.dtype)
    return written_BTSE, gated_BTSD, alpha_BTS1, update_BTSD
