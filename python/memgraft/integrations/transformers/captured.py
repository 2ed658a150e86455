"""A decoding step with a static cache as a CUDA graph; the memory is looked up and staged before it."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from memgraft.errors import ArgumentError, GraftError
from memgraft.integrations.transformers.decode_state import cache_length
from memgraft.integrations.transformers.families import find_decoder, unwrap
from memgraft.integrations.transformers.generation import METHOD
from memgraft.integrations.transformers.hooks import CACHE_NAMES, KWARG
from memgraft.integrations.transformers.runtime import runtimes_of
from memgraft.integrations.transformers.side_input import SideInput, SideInputs

# Calls that run as they are before one is recorded: they load kernels, choose algorithms and try the fused kernel.
WARM_CALLS = 2
_TENSORS = ("values", "rows", "inverse", "orders", "tokens", "segments")


class CapturedStep:
    """The decoding steps of a grafted model, recorded once as a CUDA graph and replayed.

    Looking rows up and gathering them is host work, so it happens in front of the graph: every call looks up its
    tokens, copies rows and masks into places that stay, and replays what reads them there. On a CPU the same step runs
    without a graph.

    A step serves one cache. Between calls the cache may be cropped, reordered, or reset and filled anew (unless there
    is a mask), with the same number of sequences.

    Args:
        model: the grafted model.
        cache: a static cache that holds the prompt, from a call of the model with it.
        attention_mask: (B, T) of the prompt, where it is padded on the left.
        memgraft: what reads in place of the graft's own memory, as in a call of the model.

    Attributes:
        recorded: whether calls replay a graph.

    Raises:
        GraftError: the model has no graft or cannot generate, or the cache counts its positions on the host (sliding
            windows, offloaded or linear layers): a graph would repeat one position for ever.
    """

    def __init__(
        self, model: nn.Module, cache: Any, *, attention_mask: Tensor | None = None, memgraft: Any = None
    ) -> None:
        self._model: Any = unwrap(model)
        decoder, _ = find_decoder(self._model)
        if not runtimes_of(decoder) or not hasattr(self._model, METHOD):
            raise GraftError("CapturedStep: expected a model that generates, with a graft; attach one with graft()")
        _refuse_host_counters(cache)
        self._cache, self._mask, self._memgraft = cache, attention_mask, memgraft
        names = self._model.__dict__[METHOD].__signature__.parameters
        self._cache_name = next(name for name in CACHE_NAMES if name in names)
        self._places: dict[str, Any] | None = None
        self._windows: dict[tuple[str, int], Tensor] = {}
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits: Tensor | None = None
        self._num_calls = 0

    @property
    def recorded(self) -> bool:
        """Whether calls replay a graph."""
        return self._graph is not None

    @torch.no_grad()
    def __call__(self, tokens: Tensor) -> Tensor:
        """Logits after one more token of each sequence.

        Args:
            tokens: (B, 1) or (B,) ids.

        Returns:
            (B, vocabulary), in a place that the next call writes over.

        Raises:
            ArgumentError: more than one token a sequence.
            GraftError: the model's step cannot be recorded, the number of sequences has changed, or the memory is
                switched off.
        """
        tokens = tokens.view(-1, 1) if tokens.dim() == 1 else tokens
        if tokens.dim() != 2 or tokens.shape[1] != 1:
            raise ArgumentError(f"CapturedStep: expected one token a sequence, (B, 1), found {tuple(tokens.shape)}")
        inputs = self._prepare(tokens)
        self._place(inputs)
        self._num_calls += 1
        if self._graph is not None:
            self._follow(inputs[KWARG])
            self._graph.replay()
        elif tokens.device.type == "cuda" and self._num_calls > WARM_CALLS:
            self._record()
        else:
            self._logits = self._run()
        assert self._logits is not None
        return self._logits

    def _prepare(self, tokens: Tensor) -> dict[str, Any]:
        """What `generate` would give the model: masks of the cache's whole length, and the tokens' memory."""
        asked: dict[str, Any] = {self._cache_name: self._cache, "use_cache": True}
        if self._mask is not None:
            mask, states = self._mask, list(self._cache.memgraft_states.values())
            num_seen = states[0].num_seen if states else cache_length(self._cache)
            mask = torch.cat([mask, mask.new_ones(len(mask), num_seen + 1 - mask.shape[1])], dim=1)
            asked["attention_mask"] = mask
            asked["position_ids"] = mask.long().cumsum(dim=1)[:, -1:] - 1
        if self._memgraft is not None:
            asked[KWARG] = self._memgraft
        prepare = getattr(self._model, METHOD)
        inputs: dict[str, Any] = prepare(tokens, next_sequence_length=1, **asked)
        if not isinstance(inputs[KWARG], SideInputs):
            raise GraftError("CapturedStep: the memory is switched off here; call it outside of disabled(model)")
        return inputs

    def _place(self, inputs: dict[str, Any]) -> None:
        if self._places is None:
            self._places = {name: _copied(value) for name, value in inputs.items()}
            return
        for name, value in inputs.items():
            _write(self._places.get(name), value, name)
        # What the call after this one starts from, and which sites have kept their part of it.
        for name, side in inputs[KWARG].by_name.items():
            own = self._places[KWARG].by_name[name]
            own.state, own.next_state, own.kept = side.state, side.next_state, set()

    def _run(self) -> Tensor:
        assert self._places is not None
        logits: Tensor = self._model(**self._places).logits
        return logits[:, -1]

    def _record(self) -> None:
        for name, state in self._cache.memgraft_states.items():
            self._windows |= {(name, site): window for site, window in state.conv.items()}
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._logits = self._run()
        except RuntimeError as error:
            raise GraftError(
                f"{type(self._model).__name__}: a step cannot be recorded as a CUDA graph, since it waits for the "
                f"device or copies from the host: use generate(). {error}"
            ) from error
        # Recording ran what the host does in a step; the replay runs what the device does.
        graph.replay()
        self._graph = graph

    def _follow(self, sides: SideInputs) -> None:
        """Does what the host does in a step: the graph holds the rest."""
        for side in sides.by_name.values():
            state = side.state
            assert state is not None
            assert side.next_state is not None
            state.tokens, state.segments, state.marks = side.next_state
        for (name, site), window in self._windows.items():
            held = self._cache.memgraft_states[name].conv
            if held[site] is not window:
                # The cache was cropped, reordered or filled anew: the graph reads the place that it knows.
                _write(window, held[site], "the decode state")
                held[site] = window


def _refuse_host_counters(cache: Any) -> None:
    layers = getattr(cache, "layers", None)
    fixed = layers and all(
        isinstance(getattr(layer, "cumulative_length", None), Tensor) and not layer.is_sliding for layer in layers
    )
    if not fixed or getattr(cache, "offloading", False):
        kinds = sorted({type(layer).__name__ for layer in layers or []}) or [type(cache).__name__]
        raise GraftError(
            "CapturedStep: expected a StaticCache whose layers all count their positions on the device, found "
            f"{', '.join(kinds)}{' (offloaded)' if getattr(cache, 'offloading', False) else ''}: use generate()"
        )


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {name: _copied(part) for name, part in value.items()}
    if isinstance(value, SideInputs):
        return SideInputs({name: _copied(side) for name, side in value.by_name.items()})
    if isinstance(value, SideInput):
        return dataclasses.replace(value, kept=set(), **{name: _copied(getattr(value, name)) for name in _TENSORS})
    return value


def _write(place: Any, value: Any, name: str) -> None:
    """Copies the tensors of ``value`` to where those of ``place`` are.

    Raises:
        GraftError: they are of other shapes.
    """
    if isinstance(value, dict):
        for key, part in value.items():
            _write(place[key], part, f"{name}.{key}")
    elif isinstance(value, SideInputs):
        for key, side in value.by_name.items():
            for part in _TENSORS:
                _write(getattr(place.by_name[key], part), getattr(side, part), f"{name}.{key}.{part}")
    elif isinstance(value, Tensor):
        if not isinstance(place, Tensor) or (place.shape, place.dtype) != (value.shape, value.dtype):
            found = f"{value.dtype} {tuple(value.shape)}"
            expected = f"{place.dtype} {tuple(place.shape)}" if isinstance(place, Tensor) else "none"
            raise GraftError(
                f"CapturedStep: {name} is {found}, the first step had {expected}: make another step for other sequences"
            )
        place.copy_(value, non_blocking=True)
