"""Slow twins: the same sums as plain loops over positions, for tests and benchmarks."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from memgraft.nn.conv import SegmentConv
from memgraft.nn.fallback import HashFallback
from memgraft.nn.graft_layer import GraftLayer


def _norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    return x / torch.sqrt((x * x).mean() + eps) * weight


def naive_fallback(fallback: HashFallback, tokens: list[int], segments: list[int], position: int) -> Tensor:
    """e_t of one position, (orders * dim,), straight from docs/METHOD.md, section 4."""
    sizes = fallback.sizes.tolist()
    offsets = fallback.offsets.tolist()
    parts: list[Tensor] = []
    for order_index, order in enumerate(fallback.orders):
        mix, inside = 0, True
        for lag in range(order):
            at = position - lag
            inside = inside and at >= 0 and segments[at] == segments[position]
            token = int(fallback.compressed_ids[tokens[at]]) if inside else fallback.pad_id
            mix ^= token * fallback.multipliers[lag]
        for head in range(fallback.num_heads):
            column = order_index * fallback.num_heads + head
            parts.append(fallback.table.weight[mix % sizes[column] + offsets[column]])
    return torch.cat(parts)


def naive_conv(conv: SegmentConv, inputs_TSD: Tensor, segments: list[int], position: int) -> Tensor:
    """The convolution's output at one position, (S, D)."""
    streams = inputs_TSD.shape[1]
    total = torch.zeros_like(inputs_TSD[0])
    for tap in range(conv.kernel):
        at = position - tap * conv.dilation
        if at >= 0 and segments[at] == segments[position]:
            normed = [_norm(inputs_TSD[at, s], conv.norm.weight[s].float()) for s in range(streams)]
            total = total + torch.stack(normed) * conv.weight[tap].float()
    return total * torch.sigmoid(total)


def naive_graft(
    layer: GraftLayer,
    hidden_BTD: Tensor,
    values_UV: Tensor | None,
    inverse_BT: Tensor,
    segments_BT: Tensor,
    tokens_BT: Tensor | None = None,
    target_BTE: Tensor | None = None,
    rows_U: Tensor | None = None,
) -> Tensor:
    """:class:`GraftLayer` without history, one position at a time and one projection per position; the same shapes."""
    target_BTSE = None if target_BTE is None else target_BTE.unsqueeze(2)
    hidden_BTSD = hidden_BTD.unsqueeze(2) if hidden_BTD.dim() == 3 else hidden_BTD
    batch, length, streams, width = hidden_BTSD.shape
    out: list[Tensor] = []
    for b in range(batch):
        segments = segments_BT[b].tolist()
        gated: list[Tensor] = []
        for t in range(length):
            source = _source(layer, b, t, values_UV, rows_U, inverse_BT, segments, tokens_BT)
            if source is None:
                gated.append(torch.zeros(streams, width if target_BTE is None else target_BTE.shape[-1]))
                continue
            key_weight, value_weight, vector = source
            value = value_weight.weight.float() @ vector
            if key_weight is None or layer.key_norm is None or layer.query_norm is None:
                gated.append(value.expand(streams, -1))
                continue
            keys = (key_weight.weight.float() @ vector).view(streams, width)
            rows: list[Tensor] = []
            for s in range(streams):
                key = _norm(keys[s], layer.key_norm.weight[s].float())
                query = _norm(hidden_BTSD[b, t, s].float(), layer.query_norm.weight[s].float())
                score = (key * query).sum() / math.sqrt(width)
                if layer.gate_kind == "signed_sqrt":
                    score = torch.sign(score) * torch.sqrt(torch.clamp(score.abs(), min=1e-6))
                rows.append(torch.sigmoid(score) * value)
            gated.append(torch.stack(rows))
        gated_TSD = torch.stack(gated)
        updates = []
        for t in range(length):
            update = gated_TSD[t]
            if layer.conv is not None:
                update = update + naive_conv(layer.conv, gated_TSD, segments, t)
            updates.append(update if layer.scale is None else update * layer.scale)
        out.append(torch.stack(updates))
    into, given = (hidden_BTSD, hidden_BTD) if target_BTSE is None or target_BTE is None else (target_BTSE, target_BTE)
    return (into.float() + torch.stack(out)).to(given.dtype).view(given.shape)


def _source(
    layer: GraftLayer,
    b: int,
    t: int,
    values_UV: Tensor | None,
    rows_U: Tensor | None,
    inverse_BT: Tensor,
    segments: list[int],
    tokens_BT: Tensor | None,
) -> tuple[nn.Linear | None, nn.Linear, Tensor] | None:
    if segments[t] < 0:
        return None
    row = int(inverse_BT[b, t])
    if row >= 0 and layer.memory_value is not None:
        if layer.rows is not None:
            assert rows_U is not None
            vector = layer.rows.weight[int(rows_U[row])].float()
        else:
            assert values_UV is not None
            vector = values_UV[row].float()
        if layer.normalize_values:
            vector = _norm(vector, torch.ones(()))
        return layer.memory_key, layer.memory_value, vector
    if layer.fallback is not None and layer.fallback_value is not None:
        assert tokens_BT is not None
        embedded = naive_fallback(layer.fallback, tokens_BT[b].tolist(), segments, t)
        return layer.fallback_key, layer.fallback_value, embedded.float()
    return None
