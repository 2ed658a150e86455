"""What the memory does to a text, token by token."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from memgraft.bank import Memory
from memgraft.data.batch import MemoryBatch
from memgraft.data.segments import from_batch
from memgraft.errors import ArgumentError, GraftError
from memgraft.integrations.transformers.families import find_decoder, unwrap
from memgraft.integrations.transformers.memories import check_space
from memgraft.integrations.transformers.runtime import the_runtime
from memgraft.nn.graft_layer import Observer

# Copies of the text in one call, each with one row switched off.
_AT_ONCE = 16


@dataclasses.dataclass(frozen=True)
class Explained:
    """One token.

    Attributes:
        token: its id.
        order: length of the longest match that ends here; 0 at a miss.
        row: the memory's row, or ``None``.
        bank: directory of the bank that the row is of (of a stack, the layer's), or ``None``.
        gate: mean gate by site.
        injected: norm of the update over the norm of the hidden state, by site.
        effect: what the row adds to the log-probability (nats) of the next token of the text: with it minus without it,
            where the position is a miss instead. ``None`` at misses and at the last token.
    """

    token: int
    order: int
    row: int | None
    bank: str | None
    gate: dict[int, float]
    injected: dict[int, float]
    effect: float | None


class _Probe:
    """Takes gates and updates of one call, by site."""

    def __init__(self) -> None:
        self.gate: dict[int, list[float]] = {}
        self.injected: dict[int, list[float]] = {}

    def observer(self, name: str, site: int, side: Any) -> Observer:
        """A callback for one site's graft layer."""

        def observe(hidden: Tensor, alpha: Tensor, update: Tensor, written: Tensor) -> None:
            norm = hidden[0].float().flatten(1).norm(dim=1).clamp_min(1e-12)
            self.gate[site] = alpha[0].float().flatten(1).mean(dim=1).tolist()
            self.injected[site] = (update[0].float().flatten(1).norm(dim=1) / norm).tolist()

        return observe


@torch.no_grad()
def explain(
    recipient: nn.Module, text: Any, *, tokenizer: Any = None, name: str | None = None, memory: Memory | None = None
) -> list[Explained]:
    """What each token of a text finds in the memory, and what that changes.

    Costs one forward, and one more for every 16 hits.

    Args:
        recipient: the grafted model.
        text: a text, with ``tokenizer``; or its ids, a sequence or a tensor ``(T,)`` or ``(1, T)``.
        tokenizer: a transformers tokenizer; the one that the bank holds by default.
        name: the graft, if there are several; the others stay as they are.
        memory: read this memory of the graft's value space instead of its own.

    Returns:
        One entry for each token.

    Raises:
        ArgumentError: a text without a tokenizer, or nothing to explain.
        GraftError: no such graft, or it has no memory.
        FingerprintError: ``memory`` is of another value space.
    """
    model = unwrap(recipient)
    decoder, _ = find_decoder(model)
    runtime = the_runtime(decoder, name)
    if runtime.off or runtime.config.row_source == "none":
        raise GraftError(f"the graft {runtime.name!r} has no memory to explain: control={runtime.config.control!r}")
    ids = _ids(text, tokenizer, decoder, runtime.bank)
    source = runtime.bank if memory is None else memory
    if memory is not None:
        check_space(runtime.bank, memory)
    segments = from_batch({"input_ids": ids}, eos_id=runtime.eos_ids)
    found = MemoryBatch.look_up(source, ids, segments)
    training, recorder = model.training, runtime.recorder
    probe = _Probe()
    model.eval()
    try:
        runtime.recorder = probe
        logits = _logits(model, runtime.name, ids, found, source)
        runtime.recorder = None
        hits = (found.rows[0, :-1] >= 0).nonzero().squeeze(1).tolist()
        effects = _effects(model, runtime.name, ids, found, source, logits, hits)
    finally:
        runtime.recorder = recorder
        model.train(training)
    layer_of = getattr(source, "layer_of", None)
    explained = []
    for place, (token, row, order) in enumerate(
        zip(ids[0].tolist(), found.rows[0].tolist(), found.orders[0].tolist(), strict=True)
    ):
        explained.append(
            Explained(
                token=token,
                order=order,
                row=row if row >= 0 else None,
                bank=str(layer_of(row).path) if row >= 0 and layer_of is not None else None,
                gate={site: gates[place] for site, gates in sorted(probe.gate.items())},
                injected={site: norms[place] for site, norms in sorted(probe.injected.items())},
                effect=effects.get(place),
            )
        )
    return explained


def _ids(text: Any, tokenizer: Any, decoder: nn.Module, bank: Memory) -> Tensor:
    if isinstance(text, str):
        path = getattr(bank, "tokenizer_path", None)
        if tokenizer is None and path is not None:
            from transformers import PreTrainedTokenizerFast

            tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path))
        if tokenizer is None:
            raise ArgumentError("text: expected ids, or a text with tokenizer=")
        text = tokenizer(text, add_special_tokens=False)["input_ids"]
    if isinstance(text, Mapping):
        raise ArgumentError(f'text: expected a text or ids, got a {type(text).__name__}; give its ["input_ids"]')
    if isinstance(text, list | tuple) and any(isinstance(each, str) for each in text):
        raise ArgumentError("text: expected one text, or its ids, got several; explain them one by one")
    ids = torch.as_tensor(text, dtype=torch.int64)
    ids = ids[None] if ids.dim() == 1 else ids
    if ids.dim() != 2 or ids.shape[0] != 1 or not ids.numel():
        raise ArgumentError(f"text: expected at least one token in one row, found {tuple(ids.shape)}")
    return ids.to(next(decoder.parameters()).device)


def _logits(model: nn.Module, name: str, ids: Tensor, found: MemoryBatch, source: Memory) -> Tensor:
    logits: Tensor = model(ids, memgraft={name: found.stage(source)}, use_cache=False).logits.float()
    return logits.log_softmax(-1)


def _effects(
    model: nn.Module,
    name: str,
    ids: Tensor,
    found: MemoryBatch,
    source: Memory,
    logits: Tensor,
    hits: list[int],
) -> dict[int, float]:
    effects: dict[int, float] = {}
    for first in range(0, len(hits), _AT_ONCE):
        places = torch.tensor(hits[first : first + _AT_ONCE], device=ids.device)
        copies = torch.arange(len(places), device=ids.device)
        rows, orders = (part.repeat(len(places), 1) for part in (found.rows, found.orders))
        rows[copies, places], orders[copies, places] = -1, 0
        without = MemoryBatch(rows=rows, orders=orders, segments=found.segments.repeat(len(places), 1))
        changed = _logits(model, name, ids.repeat(len(places), 1), without, source)
        following = ids[0, places + 1]
        gain = logits[0, places, following] - changed[copies, places, following]
        effects |= dict(zip(places.tolist(), gain.tolist(), strict=True))
    return effects
