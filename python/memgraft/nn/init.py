"""Initial weights of a graft layer."""

from __future__ import annotations

from typing import get_args

import torch
from torch import nn

from memgraft.config import Init
from memgraft.errors import ArgumentError
from memgraft.nn.graft_layer import GraftLayer


@torch.no_grad()
def initialize(layer: GraftLayer, init: Init, *, seed: int, std: float = 0.02) -> None:
    """Draws a layer's weights in place, from its own generator.

    Keys, tables and (unless ``init`` is ``"zero"``) values are normal with ``std``; the convolution is 0, norms are 1.
    The output is exactly 0 under ``"zero"`` (zero value projections) and ``"scalar"`` (a zero scale): never through
    both, which would not learn.

    Args:
        layer: a fresh layer; made with ``output_scale`` if and only if ``init`` is ``"scalar"``. A layer without a gate
            has a scale in any case, which is 1 unless ``init`` is ``"scalar"``.
        init: the mode.
        seed: same seed, same weights, on every device.
        std: standard deviation.

    Raises:
        ArgumentError: no such mode; the layer has an output scale under another mode, or none under ``"scalar"``.
    """
    if init not in get_args(Init):
        raise ArgumentError(f"init: expected one of {', '.join(get_args(Init))}, found {init!r}")
    if (layer.scale is not None) != (init == "scalar" or layer.gate_kind == "none"):
        raise ArgumentError('output_scale goes with init="scalar" and with no other')
    generator = torch.Generator().manual_seed(seed)

    def draw(weight: torch.Tensor) -> None:
        weight.copy_(torch.empty(weight.shape, dtype=torch.float32).normal_(0.0, std, generator=generator))

    for projection in (layer.memory_key, layer.fallback_key):
        if projection is not None:
            draw(projection.weight)
    for projection in (layer.memory_value, layer.fallback_value):
        if projection is None:
            continue
        if init == "zero":
            nn.init.zeros_(projection.weight)
        else:
            draw(projection.weight)
    if layer.fallback is not None:
        draw(layer.fallback.table.weight)
    if layer.rows is not None:
        draw(layer.rows.weight)
    for norm in (layer.key_norm, layer.query_norm):
        if norm is not None:
            nn.init.ones_(norm.weight)
    if layer.conv is not None:
        nn.init.ones_(layer.conv.norm.weight)
        nn.init.zeros_(layer.conv.weight)
    if layer.scale is not None:
        nn.init.constant_(layer.scale, 0.0 if init == "scalar" else 1.0)
