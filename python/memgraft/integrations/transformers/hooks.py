"""The hooks of a grafted model, on the decoder and on every layer; they hold no state and no module."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from memgraft.boundaries import LONGEST, MARKS, unread_names
from memgraft.data.batch import KEY
from memgraft.errors import GraftError
from memgraft.integrations.transformers.decode_state import GraftedCache, adopt, is_static
from memgraft.integrations.transformers.families import RULE, look_through, vocab_size_of
from memgraft.integrations.transformers.loading import refuse_a_graft_left_behind
from memgraft.integrations.transformers.memories import requested
from memgraft.integrations.transformers.runtime import runtimes_of
from memgraft.integrations.transformers.side_input import OFF, Off, SideInput, SideInputs, prepare
from memgraft.integrations.transformers.values import follow_recomputation, hand_over, recomputes, writes_values
from memgraft.nn.graft_layer import GraftLayer

KWARG = CHILD = KEY
_PAGED = ("block_table", "read_index", "write_index", "paged_attention_cache")
NO_CONTINUOUS_BATCHING = (
    "continuous batching (generate_batch, paged attention) is not supported with a graft: its cache cannot carry the "
    "decode state. Use generate(), or detach() the graft first"
)
# transformers 5.24 renamed past_key_values.
CACHE_NAMES = ("cache", "past_key_values")
# Decoders (by id) that are off in this context. Read once per call, by the decoder's hook: what it decides then travels
# with the call, so recomputation and other threads cannot see another answer.
_switched_off: ContextVar[frozenset[int]] = ContextVar("memgraft_switched_off", default=frozenset())


@contextlib.contextmanager
def switch_off(decoder: nn.Module) -> Iterator[None]:
    """Runs the calls of this thread or task without any graft on ``decoder``."""
    token = _switched_off.set(_switched_off.get() | {id(decoder)})
    try:
        yield
    finally:
        _switched_off.reset(token)


def is_off(decoder: nn.Module, given: Any) -> bool:
    """Whether a call runs without memory: inside ``disabled()``, or with ``memgraft=False``."""
    return given is False or isinstance(given, Off) or id(decoder) in _switched_off.get()


class DecoderHook:
    """Turns the caller's ``memgraft=`` (or its absence) into side inputs for the layers.

    Args:
        names: parameter names of the decoder's forward, in order.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Forward pre-hook with kwargs."""
        given = kwargs.get(KWARG)
        if isinstance(given, SideInputs):
            return args, kwargs
        if getattr(module, "_is_replica", False):
            raise GraftError(
                "nn.DataParallel runs replicas in threads of their own, which disabled() does not reach: use "
                "DistributedDataParallel (torchrun, accelerate launch), or show the Trainer one device"
            )
        kwargs = dict(kwargs)
        if is_off(module, given):
            kwargs[KWARG] = OFF
            return args, kwargs
        arguments = dict(zip(self.names, args, strict=False)) | kwargs
        refuse_paged(arguments)
        if module.training and torch.is_grad_enabled():
            refuse_a_graft_left_behind(module)
            if not torch.compiler.is_compiling():
                _warn_once_of_a_frozen_graft(module)
        input_ids = arguments.get("input_ids")
        if input_ids is None:
            raise GraftError(
                "the memory is looked up by token ids, and the call has none: pass input_ids (inputs_embeds alone do "
                "not name tokens; a multimodal model embeds them before its decoder, so graft its language model "
                "alone; PEFT's prompt tuning embeds them too, and its virtual tokens have no ids: use a LoRA), or "
                "switch the memory off with disabled(model) or memgraft=False"
            )
        use_cache = arguments.get("use_cache")
        if use_cache is None:
            use_cache = getattr(getattr(module, "config", None), "use_cache", False)
        kwargs[KWARG] = prepare(
            runtimes_of(module),
            input_ids,
            vocab_size=vocab_size_of(module),
            given=requested(module) if given is None else given,
            said=said_in(arguments),
            cache=cache_in(arguments),
            # A compiled call cannot put its state into a cache that it makes itself.
            use_cache=bool(use_cache) and not torch.compiler.is_compiling(),
        )
        return args, kwargs


def _warn_once_of_a_frozen_graft(decoder: nn.Module) -> None:
    fresh = [runtime for runtime in runtimes_of(decoder).values() if not runtime.seen_training]
    if not fresh:
        return
    for runtime in fresh:
        runtime.seen_training = True
    ours = [p for layer in decoder.modules() if isinstance(layer, GraftLayer) for p in layer.parameters()]
    if ours and not any(p.requires_grad for p in ours) and any(p.requires_grad for p in decoder.parameters()):
        warnings.warn(
            "the graft is frozen and something else trains (get_peft_model and peft_config= freeze what they do not "
            "know): call mark_trainable(model), or give the Trainer callbacks=[GraftCallback()]",
            stacklevel=2,
        )


class LayerHook:
    """Takes the side input out of a layer's kwargs and, at a site, adds the memory to its input or to its values.

    Args:
        site: the layer's number.
    """

    def __init__(self, site: int) -> None:
        self.site = site

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Forward pre-hook with kwargs."""
        kwargs = dict(kwargs)
        sides = kwargs.pop(KWARG, None)
        grafts = module._modules.get(CHILD)
        if grafts is None:
            return args, kwargs
        grafts = grafts if isinstance(grafts, nn.ModuleDict) else look_through(grafts)
        of_values = writes_values(grafts, look_through)
        if isinstance(sides, Off):
            if of_values:
                hand_over(self.site, None)
                follow_recomputation(module)
            return args, kwargs
        if not isinstance(sides, SideInputs):
            raise GraftError(
                f"{type(module).__name__} was called without the memory's side input: call the model, not its layers, "
                "and let no wrapper on the way strip unknown kwargs"
            )
        hidden = args[0] if args else kwargs.get("hidden_states")
        if not isinstance(hidden, Tensor):
            raise GraftError(
                f"{type(module).__name__} was called without its hidden states, found {type(hidden).__name__}. {RULE}"
            )
        cache = _cache_of(args, kwargs)
        later = []
        for name, wrapped in grafts.named_children():
            layer = _graft_layer(wrapped, name, self.site)
            if layer.target_dim is None:
                hidden = _inject(wrapped, layer, name, self.site, hidden, sides.by_name[name], cache)
            else:
                later.append((wrapped, layer, name, sides.by_name[name]))
        if of_values:
            # A block that is computed again keeps no cache.
            cache = None if recomputes(module) else cache
            follow_recomputation(module)
            hand_over(self.site, functools.partial(_write_values, later, self.site, hidden, cache))
        if args:
            return (hidden, *args[1:]), kwargs
        kwargs["hidden_states"] = hidden
        return args, kwargs


def refuse_adapters_inside(model: nn.Module) -> None:
    """Refuses an adapter that was put into a graft's layers, where it would be trained and saved by nobody.

    Raises:
        GraftError: there is one.
    """
    for module in model.modules():
        if isinstance(module, GraftLayer):
            _refuse_adapter(module)


def _refuse_adapter(layer: GraftLayer) -> None:
    for part in (layer.memory_key, layer.memory_value, layer.fallback_key, layer.fallback_value):
        if hasattr(type(part), "adapter_layer_names"):
            raise GraftError(
                "PEFT put an adapter into the graft's layers, which train whole: keep it out with LoraConfig("
                "exclude_modules=memgraft.integrations.peft.EXCLUDE_MODULES)"
            )


def _graft_layer(wrapped: nn.Module, name: str, site: int) -> GraftLayer:
    layer = wrapped if isinstance(wrapped, GraftLayer) else look_through(wrapped)
    if not isinstance(layer, GraftLayer):
        raise GraftError(f"site {site}: {name!r} is a {type(layer).__name__}, not a graft layer")
    _refuse_adapter(layer)
    return layer


def _write_values(
    layers: list[tuple[nn.Module, GraftLayer, str, SideInput]], site: int, hidden: Tensor, cache: Any, values: Tensor
) -> Tensor:
    """The values of a block's attention, (B, T, E), with what its grafts add to them."""
    for wrapped, layer, name, side in layers:
        if values.shape != (*side.inverse.shape, layer.target_dim):
            raise GraftError(
                f"site {site}: expected values of shape {(*side.inverse.shape, layer.target_dim)}, found "
                f'{tuple(values.shape)}: this family computes them otherwise. Use into="residual"'
            )
        values = _inject(wrapped, layer, name, site, hidden, side, cache, values)
    return values


def _inject(
    wrapped: nn.Module,
    layer: GraftLayer,
    name: str,
    site: int,
    hidden: Tensor,
    side: SideInput,
    cache: Any,
    target: Tensor | None = None,
) -> Tensor:
    if target is not None:
        # Under a device map the block's own hook moves its input after ours has seen it.
        hidden = hidden.to(target.device)
    reach, device = layer.conv_reach, hidden.device
    if hidden.shape[:2] != side.inverse.shape:
        raise GraftError(
            f"site {site}: expected hidden states of (batch, tokens, ...) {tuple(side.inverse.shape)}, found "
            f"{tuple(hidden.shape)}: this family keeps its residual stream otherwise. {RULE}"
        )
    conv_state = None
    if side.history and reach:
        assert side.state is not None
        conv_state = side.state.conv[site][:, -reach:]
    more: dict[str, Tensor] = {}
    if target is not None:
        more["target_BTE"] = target
    if side.rows is not None:
        more["rows_U"] = side.rows.to(device)
    keep = cache is not None and side.state is not None and side.next_state is not None
    out, gated = wrapped(
        hidden,
        None if side.values is None else side.values[:, side.tap_of_site[site]].to(device),
        side.inverse.to(device),
        side.segments.to(device),
        side.tokens.to(device),
        conv_state_BCSD=conv_state,
        misses_M=None if side.misses is None else side.misses.to(device),
        observer=None if side.recorder is None else side.recorder.observer(name, site, side),
        keep_gated=keep,
        **more,
    )
    if keep:
        _keep(layer, name, site, side, gated, cache)
    written: Tensor = out
    return written


def _keep(layer: GraftLayer, name: str, site: int, side: SideInput, gated: Tensor, cache: Any) -> None:
    """Puts the state after this call into the cache."""
    if not isinstance(cache, GraftedCache):
        if torch.compiler.is_compiling():
            return  # swapping a class cannot be traced; a later call on this cache raises
        adopt(cache)
    state = side.state
    assert state is not None
    assert side.next_state is not None
    if site in side.kept:
        raise GraftError(
            f"block {site} ran more than once in one call: a graft keeps one decode state per site. Generate with "
            f"use_cache=False. {RULE}"
        )
    side.kept.add(site)
    if layer.conv_reach:
        state.keep_gated(site, gated, history=side.history, in_place=is_static(cache))
    state.tokens, state.segments, state.marks = side.next_state
    cache.memgraft_states[name] = state


def _cache_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Cache | None:
    for value in (*kwargs.values(), *args):
        if isinstance(value, Cache):
            return value
    return None


def cache_in(arguments: dict[str, Any]) -> Any:
    """The call's cache under whichever name this version of transformers gives it, or ``None``."""
    return next((arguments[name] for name in CACHE_NAMES if arguments.get(name) is not None), None)


def said_in(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What a call says about boundaries, and names that look as if they did, which are refused where they are read."""
    names = [name for name in (*MARKS, *LONGEST) if arguments.get(name) is not None]
    return {name: arguments[name] for name in (*names, *unread_names(arguments))}


def refuse_paged(arguments: dict[str, Any]) -> None:
    """Refuses continuous batching, whose paged cache cannot carry the state.

    Raises:
        GraftError: the call comes from it.
    """
    paged = [name for name in _PAGED if arguments.get(name) is not None]
    if paged or type(cache_in(arguments)).__name__.startswith("Paged"):
        raise GraftError(NO_CONTINUOUS_BATCHING)
