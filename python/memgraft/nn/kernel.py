"""Gate and mix of a site as one Triton kernel forward and one backward; `GraftLayer`'s torch path is the slow twin.

One program has one position and stream (backward: a run of positions) and the whole width in registers. It recomputes
the gates of the positions that the convolution reads, so that nothing wide is kept between the passes: the forward
saves one float32 per position and stream, the twin saves the gated values, their norms and the convolution's output.

Bytes of device memory a position and stream, hidden state in bf16, width D (rows and the neighbours' hidden states come
from the second-level cache, where a position is read once per tap)::

    forward     hidden 2 D in, hidden 2 D out, each distinct row's key 4 D and value 2 D in; with a cache gated values
                4 D out
    backward    hidden 2 D and its gradient 2 D in, gradient 2 D out, gradients of key and value 4 D each out

Both are custom operators with shapes for tracing, so that compiled graphs stay whole. ``TRITON_INTERPRET=1`` runs them
on the CPU, for tests.
"""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

from memgraft.nn.gate import NORM_EPS, SIGNED_SQRT_FLOOR

# Positions of one program of the backward: its share of the taps' gradient stays in registers.
_RUN = 16
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@triton.jit
def _gated(
    values_ptr, picked_ptr, alpha_ptr, state_ptr, segments_ptr, b, t, s, taps, cols,
    T, S, C, D: tl.constexpr, K: tl.constexpr, DILATION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Gated values that the taps of position t read, (taps, D); 0 beyond the segment."""
    at = t - taps * DILATION
    here = tl.load(segments_ptr + b * (C + T) + C + at + taps * DILATION, mask=at + taps * DILATION < T, other=-2)
    inside = (taps < K) & (at >= -C) & (at < T)
    inside = inside & (tl.load(segments_ptr + b * (C + T) + C + at, mask=inside, other=-3) == here)
    new = inside & (at >= 0)
    flat = b * T + at
    alpha = tl.load(alpha_ptr + flat * S + s, mask=new, other=0.0).to(ACC)
    row = tl.load(picked_ptr + flat, mask=new, other=0)
    wide = (cols < D)[None, :]
    gated = tl.load(values_ptr + row[:, None] * D + cols[None, :], mask=new[:, None] & wide, other=0.0).to(ACC)
    gated = gated * alpha[:, None]
    if C > 0:
        old = inside & (at < 0)
        place = ((b * C + C + at) * S + s)[:, None] * D + cols[None, :]
        gated += tl.load(state_ptr + place, mask=old[:, None] & wide, other=0.0).to(ACC)
    return gated


@triton.jit
def _gate_score(dot, key_scale, query_scale, D: tl.constexpr, SIGNED: tl.constexpr, FLOOR: tl.constexpr):
    """The gate's argument."""
    score = dot * key_scale * query_scale / tl.sqrt(D + 0.0 * dot)
    if SIGNED:
        size = tl.sqrt(tl.maximum(tl.abs(score), FLOOR))
        score = tl.where(score > 0, size, tl.where(score < 0, -size, 0.0))
    return score


@triton.jit
def _forward_kernel(
    hidden_ptr, keys_ptr, scales_ptr, values_ptr, picked_ptr, sourced_ptr, segments_ptr, taps_ptr, factor_ptr,
    state_ptr, out_ptr, gated_ptr, alpha_ptr,
    T, S, C, D: tl.constexpr, K: tl.constexpr, DILATION: tl.constexpr, KP: tl.constexpr, BLOCK: tl.constexpr,
    SIGNED: tl.constexpr, CONV: tl.constexpr, SCALED: tl.constexpr, KEEP: tl.constexpr, EPS: tl.constexpr,
    FLOOR: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    position = tl.program_id(0).to(tl.int64)
    s = tl.program_id(1).to(tl.int64)
    b = position // T
    t = position % T
    cols = tl.arange(0, BLOCK)
    taps = tl.arange(0, KP)
    # All positions that this one reads, its own first; those beyond the segment weigh nothing.
    at = t - taps * DILATION
    new = (taps < K) & (at >= 0)
    flat = b * T + at
    segment = tl.load(segments_ptr + b * (C + T) + C + t)
    inside = (taps < K) & (at >= -C)
    inside = inside & (tl.load(segments_ptr + b * (C + T) + C + at, mask=inside, other=-3) == segment)
    new = new & inside
    wide = (cols < D)[None, :]
    mask = new[:, None] & wide
    row = tl.load(picked_ptr + flat, mask=new, other=0)
    hidden = tl.load(hidden_ptr + (flat * S + s)[:, None] * D + cols[None, :], mask=mask, other=0.0).to(ACC)
    keys = tl.load(keys_ptr + (row * S + s)[:, None] * D + cols[None, :], mask=mask, other=0.0).to(ACC)
    dot = tl.sum(keys * hidden, axis=1)
    query_scale = 1.0 / tl.sqrt(tl.sum(hidden * hidden, axis=1) / D + EPS)
    key_scale = tl.load(scales_ptr + row * S + s, mask=new, other=0.0).to(ACC)
    score = _gate_score(dot, key_scale, query_scale, D, SIGNED, FLOOR)
    sourced = tl.load(sourced_ptr + flat, mask=new, other=0) != 0
    alpha = tl.where(sourced, 1.0 / (1.0 + tl.exp(-score)), 0.0)
    gated = tl.load(values_ptr + row[:, None] * D + cols[None, :], mask=mask, other=0.0).to(ACC) * alpha[:, None]
    if C > 0:
        old = inside & (at < 0)
        place = ((b * C + C + at) * S + s)[:, None] * D + cols[None, :]
        gated += tl.load(state_ptr + place, mask=old[:, None] & wide, other=0.0).to(ACC)
    own = (taps == 0)[:, None]
    own_gated = tl.sum(tl.where(own, gated, 0.0), axis=0)
    update = own_gated
    if CONV:
        norm = gated / tl.sqrt(tl.sum(gated * gated, axis=1) / D + EPS)[:, None]
        place = (taps * S + s)[:, None] * D + cols[None, :]
        weight = tl.load(taps_ptr + place, mask=(taps < K)[:, None] & wide, other=0.0).to(ACC)
        mixed = tl.sum(norm * weight, axis=0)
        update += mixed / (1.0 + tl.exp(-mixed))
    if SCALED:
        update = update * tl.load(factor_ptr).to(ACC)
    written = tl.sum(tl.where(own, hidden, 0.0), axis=0) + update
    place = (position * S + s) * D + cols
    tl.store(out_ptr + place, written.to(out_ptr.dtype.element_ty), mask=cols < D)
    if KEEP:
        tl.store(gated_ptr + place, own_gated, mask=cols < D)
    tl.store(alpha_ptr + position * S + s, tl.sum(tl.where(taps == 0, alpha, 0.0), axis=0))


@triton.jit
def _backward_kernel(
    hidden_ptr, keys_ptr, scales_ptr, values_ptr, picked_ptr, sourced_ptr, segments_ptr, taps_ptr, factor_ptr,
    state_ptr, alpha_ptr, of_out_ptr, of_gated_ptr,
    of_hidden_ptr, of_keys_ptr, of_scales_ptr, of_values_ptr, of_taps_ptr, of_factor_ptr,
    T, S, C, D: tl.constexpr, K: tl.constexpr, DILATION: tl.constexpr, KP: tl.constexpr, BLOCK: tl.constexpr,
    SIGNED: tl.constexpr, CONV: tl.constexpr, SCALED: tl.constexpr, GATED: tl.constexpr, EPS: tl.constexpr,
    FLOOR: tl.constexpr, RUN: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    runs = (T + RUN - 1) // RUN
    run = tl.program_id(0).to(tl.int64)
    s = tl.program_id(1).to(tl.int64)
    b = run // runs
    first = (run % runs) * RUN
    cols = tl.arange(0, BLOCK)
    taps = tl.arange(0, KP)
    width = cols < D
    factor = 1.0
    if SCALED:
        factor = tl.load(factor_ptr).to(ACC)
    tile = (taps * S + s)[:, None] * D + cols[None, :]
    weight = tl.zeros((KP, BLOCK), ACC)
    if CONV:
        weight = tl.load(taps_ptr + tile, mask=(taps < K)[:, None] & width[None, :], other=0.0).to(ACC)
    of_weight = tl.zeros((KP, BLOCK), ACC)
    of_factor = tl.zeros((BLOCK,), ACC)
    for step in range(tl.minimum(RUN, T - first)):
        t = first + step
        flat = b * T + t
        place = (flat * S + s) * D + cols
        of_out = tl.load(of_out_ptr + place, mask=width, other=0.0).to(ACC)
        alpha = tl.load(alpha_ptr + flat * S + s).to(ACC)
        row = tl.load(picked_ptr + flat)
        value = tl.load(values_ptr + row * D + cols, mask=width, other=0.0).to(ACC)
        gated = alpha * value
        update = gated
        of_value = factor * of_out
        if GATED:
            of_value += tl.load(of_gated_ptr + place, mask=width, other=0.0).to(ACC)
        if CONV:
            segment = tl.load(segments_ptr + b * (C + T) + C + t)
            of_norm = tl.zeros((BLOCK,), ACC)
            # The positions whose convolution reads this one, itself first.
            for tap in range(K):
                later = t + tap * DILATION
                valid = later < T
                valid = valid & (tl.load(segments_ptr + b * (C + T) + C + later, mask=valid, other=-3) == segment)
                read = _gated(
                    values_ptr, picked_ptr, alpha_ptr, state_ptr, segments_ptr, b, later, s, taps, cols,
                    T, S, C, D, K, DILATION, ACC,
                )  # fmt: skip
                norm = read / tl.sqrt(tl.sum(read * read, axis=1) / D + EPS)[:, None]
                mixed = tl.sum(norm * weight, axis=0)
                opened = 1.0 / (1.0 + tl.exp(-mixed))
                place_later = ((b * T + later) * S + s) * D + cols
                of_later = tl.load(of_out_ptr + place_later, mask=width & (cols * 0 + later < T), other=0.0).to(ACC)
                of_later = tl.where(valid, of_later, 0.0)
                of_mixed = factor * of_later * opened * (1.0 + mixed * (1.0 - opened))
                of_norm += of_mixed * tl.sum(tl.where((taps == tap)[:, None], weight, 0.0), axis=0)
                if tap == 0:
                    of_weight += of_mixed[None, :] * norm
                    update += mixed * opened
            scale = 1.0 / tl.sqrt(tl.sum(gated * gated, axis=0) / D + EPS)
            norm_here = gated * scale
            of_value += scale * (of_norm - norm_here * (tl.sum(of_norm * norm_here, axis=0) / D))
        if SCALED:
            of_factor += of_out * update
        hidden = tl.load(hidden_ptr + place, mask=width, other=0.0).to(ACC)
        key = tl.load(keys_ptr + (row * S + s) * D + cols, mask=width, other=0.0).to(ACC)
        key_scale = tl.load(scales_ptr + row * S + s).to(ACC)
        query_scale = 1.0 / tl.sqrt(tl.sum(hidden * hidden, axis=0) / D + EPS)
        dot = tl.sum(key * hidden, axis=0)
        root = tl.sqrt(D + 0.0 * dot)
        of_score = tl.sum(of_value * value, axis=0) * alpha * (1.0 - alpha)
        if SIGNED:
            size = tl.abs(dot * key_scale * query_scale / root)
            of_score = tl.where(size >= FLOOR, of_score * 0.5 / tl.sqrt(tl.maximum(size, FLOOR)), 0.0)
        of_score = tl.where(tl.load(sourced_ptr + flat) != 0, of_score, 0.0) / root
        of_hidden = of_out + of_score * key_scale * (
            query_scale * key - dot * query_scale * query_scale * query_scale * hidden / D
        )
        tl.store(of_hidden_ptr + place, of_hidden.to(of_hidden_ptr.dtype.element_ty), mask=width)
        tl.store(of_keys_ptr + place, of_score * key_scale * query_scale * hidden, mask=width)
        tl.store(of_values_ptr + place, alpha * of_value, mask=width)
        tl.store(of_scales_ptr + flat * S + s, of_score * dot * query_scale)
    if CONV:
        tile = ((run * K + taps) * S + s)[:, None] * D + cols[None, :]
        tl.store(of_taps_ptr + tile, of_weight, mask=(taps < K)[:, None] & width[None, :])
    if SCALED:
        tl.store(of_factor_ptr + run * S + s, tl.sum(of_factor, axis=0))


def _options(
    hidden: Tensor, taps: Tensor | None, dilation: int, signed: bool, factor: Tensor | None
) -> dict[str, object]:
    width = hidden.shape[-1]
    kernel = 1 if taps is None else taps.shape[0]
    block = triton.next_power_of_2(width)
    padded = triton.next_power_of_2(kernel)
    return {
        "D": width,
        "K": kernel,
        "DILATION": dilation,
        "KP": padded,
        "BLOCK": block,
        "SIGNED": signed,
        "CONV": taps is not None,
        "SCALED": factor is not None,
        "EPS": NORM_EPS,
        "FLOOR": SIGNED_SQRT_FLOOR,
        "ACC": tl.float64 if hidden.dtype == torch.float64 else tl.float32,
        "num_warps": min(16, max(4, block * padded // 1024)),
    }


def _wide(hidden: Tensor) -> torch.dtype:
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32


@torch.library.custom_op("memgraft::gate_and_mix", mutates_args=())
def gate_and_mix(
    hidden: Tensor,
    keys: Tensor,
    scales: Tensor,
    values: Tensor,
    picked: Tensor,
    sourced: Tensor,
    segments: Tensor,
    taps: Tensor | None,
    factor: Tensor | None,
    state: Tensor | None,
    dilation: int,
    signed: bool,
    keep: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """The site's write, from projected rows.

    Args:
        hidden: (B, T, S, D), any float dtype.
        keys: (N, S, D) projected keys times both norms' weights.
        scales: (N, S) the keys' RMS scales.
        values: (N, D) projected values.
        picked: (B, T) int64, each position's row.
        sourced: (B, T) bool, positions that have a source.
        segments: (B, C + T) integers.
        taps: (K, S, D) the convolution's taps times its norm's weight, or ``None`` without one.
        factor: the output's scalar, or ``None``.
        state: (B, C, S, D) gated values of the history, or ``None``.
        dilation: of the convolution.
        signed: whether the gate is ``signed_sqrt``.
        keep: whether the gated values are wanted.

    Returns:
        Hidden states (B, T, S, D), gated values (B, T, S, D) float32 (none, (0,), where they are not wanted), gates
        (B, T, S) float32.
    """
    batch, length, streams, _ = hidden.shape
    tensors = [x.contiguous() for x in (hidden, keys, scales, values, picked, sourced, segments)]
    written = torch.empty_like(tensors[0])
    gated = written.new_empty(written.shape if keep else 0, dtype=_wide(hidden))
    alpha = gated.new_empty(hidden.shape[:-1])
    # Arguments that are not there are never read.
    optional = [written if x is None else x.contiguous() for x in (taps, factor, state)]
    if written.numel():
        _forward_kernel[(batch * length, streams)](
            *tensors, *optional, written, gated, alpha,
            length, streams, 0 if state is None else state.shape[1],
            KEEP=keep, **_options(hidden, taps, dilation, signed, factor),
        )  # fmt: skip
    return written, gated, alpha


@gate_and_mix.register_fake
def _(hidden, keys, scales, values, picked, sourced, segments, taps, factor, state, dilation, signed, keep=True):
    written = hidden.new_empty(hidden.shape)
    gated = hidden.new_empty(hidden.shape if keep else 0, dtype=_wide(hidden))
    return written, gated, gated.new_empty(hidden.shape[:-1])


@torch.library.custom_op("memgraft::gate_and_mix_backward", mutates_args=())
def _gate_and_mix_backward(
    of_out: Tensor,
    of_gated: Tensor | None,
    hidden: Tensor,
    keys: Tensor,
    scales: Tensor,
    values: Tensor,
    picked: Tensor,
    sourced: Tensor,
    segments: Tensor,
    taps: Tensor | None,
    factor: Tensor | None,
    state: Tensor | None,
    alpha: Tensor,
    dilation: int,
    signed: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of hidden states, keys, scales, values, taps and factor; each in float32 but the hidden states'."""
    batch, length, streams, width = hidden.shape
    kind = _wide(hidden)
    runs = batch * triton.cdiv(length, _RUN)
    tensors = [x.contiguous() for x in (hidden, keys, scales, values, picked, sourced, segments)]
    of_hidden = torch.empty_like(tensors[0])
    of_keys_BTSD = torch.empty_like(of_hidden, dtype=kind)
    of_values_BTSD = torch.empty_like(of_keys_BTSD)
    of_scales_BTS = of_keys_BTSD.new_empty(hidden.shape[:-1])
    of_taps = of_keys_BTSD.new_empty(runs, 1 if taps is None else taps.shape[0], streams, width)
    of_factor = of_keys_BTSD.new_empty(runs, streams)
    optional = [of_hidden if x is None else x.contiguous() for x in (taps, factor, state)]
    if of_hidden.numel():
        _backward_kernel[(runs, streams)](
            *tensors, *optional, alpha.contiguous(), of_out.contiguous(),
            of_hidden if of_gated is None else of_gated.contiguous(),
            of_hidden, of_keys_BTSD, of_scales_BTS, of_values_BTSD, of_taps, of_factor,
            length, streams, 0 if state is None else state.shape[1],
            GATED=of_gated is not None, RUN=_RUN, **_options(hidden, taps, dilation, signed, factor),
        )  # fmt: skip
    rows, flat = len(keys), picked.flatten()

    def by_row(gradients):
        # Sorted sums and not atomic ones: on a card a step gives the same bits every time, as the torch path's does.
        return torch.ops.aten.embedding_dense_backward(gradients, flat, rows, -1, False)

    of_keys = by_row(of_keys_BTSD.view(len(flat), streams * width)).view(rows, streams, width)
    of_scales = by_row(of_scales_BTS.view(len(flat), streams))
    of_values = by_row(of_values_BTSD.sum(2).view(len(flat), width))
    return of_hidden, of_keys, of_scales, of_values, of_taps.sum(0), of_factor.sum()


@_gate_and_mix_backward.register_fake
def _(of_out, of_gated, hidden, keys, scales, values, picked, sourced, segments, taps, *rest):
    kind = _wide(hidden)
    like_taps = (1, *keys.shape[1:]) if taps is None else taps.shape
    shapes = (keys.shape, scales.shape, values.shape, like_taps, ())
    return (hidden.new_empty(hidden.shape), *(hidden.new_empty(shape, dtype=kind) for shape in shapes))


def _keep(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    *tensors, ctx.dilation, ctx.signed, _keep_gated = inputs
    ctx.save_for_backward(*tensors, output[2])
    ctx.mark_non_differentiable(output[2])


def _differentiate(ctx, of_out, of_gated, _):
    *tensors, alpha = ctx.saved_tensors
    hidden, keys, scales, values, _picked, _sourced, _segments, taps, factor, _state = tensors
    if of_out is None:
        of_out = torch.zeros_like(hidden)
    found = _gate_and_mix_backward(of_out, of_gated, *tensors, alpha, ctx.dilation, ctx.signed)
    kept = [
        None if x is None else gradient.to(x.dtype).view(x.shape)
        for x, gradient in zip((hidden, keys, scales, values, taps, factor), found, strict=True)
    ]
    return (*kept[:4], None, None, None, *kept[4:], None, None, None, None)


gate_and_mix.register_autograd(_differentiate, setup_context=_keep)
