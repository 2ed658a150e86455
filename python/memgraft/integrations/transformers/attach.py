"""Attach a graft to a transformers model and take it off again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, TypeVar

from torch import nn

from memgraft.bank import Memory, open_memory
from memgraft.bank.overlay import Where
from memgraft.config import GraftConfig
from memgraft.errors import ConfigError, FingerprintError, GraftError
from memgraft.integrations.transformers import generation, values
from memgraft.integrations.transformers.building import add_child, build_layers, eos_ids, pad_id, tap_of_site
from memgraft.integrations.transformers.controls import controlled_rows
from memgraft.integrations.transformers.families import find_decoder, inspect_recipient, look_through, unwrap
from memgraft.integrations.transformers.hooks import CHILD, DecoderHook, LayerHook, switch_off
from memgraft.integrations.transformers.loading import LoadHook
from memgraft.integrations.transformers.runtime import ATTRIBUTE, GraftRuntime, runtimes_of
from memgraft.nn.compression import CompressedVocabulary
from memgraft.nn.graft_layer import GraftLayer
from memgraft.tokenizer import differs_from, open_tokenizer

Model = TypeVar("Model", bound=nn.Module)
_KEYS_AT_ONCE = 1 << 18


def graft(
    recipient: Model,
    bank: Memory | Where,
    config: GraftConfig,
    *,
    name: str = "default",
    tokenizer: Any = None,
    vocabulary: CompressedVocabulary | None = None,
) -> Model:
    """Attaches a bank to a model, in place, and returns the model.

    With ``config.init`` ``"zero"`` or ``"scalar"`` the model's outputs do not change until the graft has learned.
    Attach before ``torch.compile``, ``fully_shard`` and DDP.

    Args:
        recipient: a transformers causal language model (or its decoder); a PEFT wrapper is looked through.
        bank: an open bank or its path; it stays outside the model's parameters, buffers and state_dict.
        config: what to attach, and where.
        name: the graft's name; several may be attached.
        tokenizer: the recipient's tokenizer (or a path to its ``tokenizer.json``), for a fallback with
            ``compress=True``; the one that the bank holds by default.
        vocabulary: the compressed vocabulary itself, instead of ``tokenizer``.

    Raises:
        ArgumentError: ``recipient`` is no model, or ``bank`` neither a bank nor a path.
        GraftError: the family is not supported, the name is taken, or the model is wrapped for several ranks already.
        ConfigError: the config does not fit the recipient or the bank.
        FingerprintError: the bank's keys are of another tokenizer than ``tokenizer``.
    """
    bank = open_memory(bank)
    if not isinstance(config, GraftConfig):
        raise ConfigError(
            f"config: expected a GraftConfig, got a {type(config).__name__}; GraftConfig(**...) makes one"
        )
    check_vocabulary(bank, inspect_recipient(recipient).vocab_size)
    if tokenizer is not None:
        check_tokenizer(bank, tokenizer)
    attach(recipient, bank, config, name=name, tokenizer=tokenizer, vocabulary=vocabulary)
    return recipient


def attach(
    recipient: nn.Module,
    bank: Memory,
    config: GraftConfig,
    *,
    name: str,
    tokenizer: Any = None,
    vocabulary: CompressedVocabulary | None = None,
) -> None:
    """:func:`graft` with an open bank and without a look at tokenizers, for grafts that went through it before."""
    parts = inspect_recipient(recipient)
    _refuse_replicas(recipient)
    if not name.isidentifier():
        raise GraftError(f"a graft's name must be an identifier, found {name!r}")
    if name in runtimes_of(parts.decoder):
        raise GraftError(f"the model has a graft named {name!r} already: detach it, or give another name=")
    taps = tap_of_site(bank, config, len(parts.layers))
    if config.streams != parts.streams:
        raise ConfigError(
            f"the recipient's hidden state has {parts.streams} residual stream(s), the config {config.streams}: give "
            f"GraftConfig(streams={parts.streams})"
        )
    runtime = GraftRuntime(
        name=name,
        bank=bank,
        config=config,
        tap_of_site=taps,
        eos_ids=eos_ids(config, parts.model),
        max_order=bank.max_order,
        pad_token_id=pad_id(config, parts.model),
        hidden_dim=parts.hidden_dim,
        shapes={},
        controlled=controlled_rows(bank, config),
    )
    runtime.versions = {name: parameter._version for name, parameter in parts.model.named_parameters()}
    if tokenizer is None:
        tokenizer = getattr(bank, "tokenizer_path", None)
    layers = {} if runtime.off else build_layers(parts, runtime, tokenizer, vocabulary)
    for site, layer in layers.items():
        runtime.shapes |= {f"sites.{site}.{key}": tuple(tensor.shape) for key, tensor in layer.state_dict().items()}
        add_child(parts.layers[site], name, layer)
        if config.into == "values":
            values.install(parts.layers[site], site)
    if not runtimes_of(parts.decoder):
        parts.decoder.__dict__[ATTRIBUTE] = {}
        parts.decoder.register_forward_pre_hook(DecoderHook(parts.forward_names), with_kwargs=True)
        # torch 2.4 has no public name for it.
        parts.decoder._register_load_state_dict_pre_hook(LoadHook(), with_module=True)  # type: ignore[no-untyped-call]
        for number, block in enumerate(parts.layers):
            block.register_forward_pre_hook(LayerHook(number), with_kwargs=True)
        generation.install(parts.model, parts.decoder)
    runtimes_of(parts.decoder)[name] = runtime


def detach(recipient: Model, name: str | None = None) -> Model:
    """Takes a graft off (all of them without a name); the model is as it was before.

    Raises:
        GraftError: there is no such graft.
    """
    model = unwrap(recipient)
    decoder, layers = find_decoder(model)
    runtimes = runtimes_of(decoder)
    if not runtimes or (name is not None and name not in runtimes):
        wanted = "graft" if name is None else f"graft {name!r}"
        raise GraftError(f"no {wanted} to detach: the model has {sorted(runtimes) or 'none'}")
    for gone in [name] if name is not None else list(runtimes):
        del runtimes[gone]
        for block in layers:
            grafts = block._modules.get(CHILD)
            if isinstance(grafts, nn.ModuleDict) and gone in grafts:
                del grafts[gone]
                if not values.writes_values(grafts, look_through):
                    values.uninstall(block)
                if not len(grafts):
                    del block._modules[CHILD]
    if not runtimes:
        del decoder.__dict__[ATTRIBUTE]
        for module in (decoder, *layers):
            for key, hook in list(module._forward_pre_hooks.items()):
                if isinstance(hook, DecoderHook | LayerHook):
                    del module._forward_pre_hooks[key]
                    module._forward_pre_hooks_with_kwargs.pop(key, None)
        for key, wrapped in list(decoder._load_state_dict_pre_hooks.items()):
            if isinstance(getattr(wrapped, "hook", wrapped), LoadHook):
                del decoder._load_state_dict_pre_hooks[key]
        generation.uninstall(model)
    return recipient


@contextlib.contextmanager
def disabled(recipient: nn.Module) -> Iterator[None]:
    """Runs the model without any of its grafts: neither memory nor fallback nor convolution.

    Holds for calls made by this thread (or asyncio task); ``model(..., memgraft=False)`` does the same for one call.

    Raises:
        GraftError: the model has no graft.
    """
    decoder, _ = find_decoder(unwrap(recipient))
    if not runtimes_of(decoder):
        raise GraftError("the model has no graft to switch off; attach one with graft()")
    with switch_off(decoder):
        yield


def graft_layers(recipient: nn.Module, name: str | None = None) -> dict[str, dict[int, GraftLayer]]:
    """Graft layers by graft name and site; empty for a model without a graft.

    Raises:
        GraftError: a wrapper hides a layer that the graft has.
    """
    decoder, layers = find_decoder(unwrap(recipient))
    found: dict[str, dict[int, GraftLayer]] = {}
    for site, block in enumerate(layers):
        grafts = block._modules.get(CHILD)
        if grafts is None:
            continue
        for key, layer in grafts.named_children():
            if isinstance(layer, GraftLayer) and name in (None, key):
                found.setdefault(key, {})[site] = layer
    for key, runtime in runtimes_of(decoder).items():
        if name in (None, key) and not runtime.off and set(found.get(key, {})) != set(runtime.config.sites):
            kinds = sorted({type(layers[site]).__name__ for site in runtime.config.sites})
            raise GraftError(
                f"graft {key!r}: expected layers at blocks {sorted(runtime.config.sites)}, found them at "
                f"{sorted(found.get(key, {}))}: something wraps the blocks ({', '.join(kinds)}) in a way that hides "
                "what is inside. Call this on the model before it is wrapped"
            )
    return found


def _refuse_replicas(recipient: nn.Module) -> None:
    """Refuses a model inside wrappers that keep the weights of several ranks in step: a graft's would not be known.

    Raises:
        GraftError: there is one.
    """
    kinds = {type(module).__name__ for module in recipient.modules()}
    late = sorted(kinds & {"DistributedDataParallel", "FullyShardedDataParallel", "DeepSpeedEngine"})
    if any(hasattr(type(module), "set_reshard_after_forward") for module in recipient.modules()):
        late.append("fully_shard")
    if late:
        raise GraftError(
            f"the model is inside {late[0]} already, which would not keep the graft's weights in step between ranks: "
            "graft first, then wrap"
        )


def check_vocabulary(bank: Memory, vocab_size: int) -> None:
    """Refuses a bank with keys that the recipient cannot read; ids that stand in no key may lie past its embedding."""
    keys = getattr(bank, "keys", None)
    if bank.vocab_size <= vocab_size or keys is None:
        return
    for start in range(0, len(keys), _KEYS_AT_ONCE):
        tokens = keys.arrays(start, min(start + _KEYS_AT_ONCE, len(keys))).tokens
        if len(tokens) and int(tokens.max()) >= vocab_size:
            raise ConfigError(
                f"a key of the bank holds token {int(tokens.max())}, the recipient's embedding has {vocab_size} rows: "
                "they do not share a tokenizer. Mine with the recipient's tokenizer"
            )


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Fingerprint of a tokenizer's mapping between text and ids, as banks record it."""
    return open_tokenizer(tokenizer).fingerprint


def check_tokenizer(bank: Memory, tokenizer: Any) -> None:
    """Refuses a tokenizer that did not make the bank's keys; nothing to check where the bank does not name one.

    Raises:
        FingerprintError: they differ.
    """
    if difference := differs_from(open_tokenizer(tokenizer), bank.manifest.tokenizer):
        raise FingerprintError(
            f"the bank's keys are of tokenizer {bank.manifest.tokenizer.get('fingerprint')}, not of the one given: "
            f"{difference}; their ids mean other text. Graft a bank that was mined with this tokenizer, or give the "
            "tokenizer that the bank names"
        )
