"""From config and recipient to graft layers: the fallback's vocabulary, taps of sites, ids, weights, devices."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from memgraft.bank import Memory
from memgraft.config import GraftConfig, taps_of_sites
from memgraft.errors import ConfigError, GraftError
from memgraft.integrations.transformers.families import Recipient, text_config, vocab_size_of
from memgraft.integrations.transformers.hooks import CHILD
from memgraft.integrations.transformers.runtime import GraftRuntime
from memgraft.integrations.transformers.values import value_projection
from memgraft.nn.compression import CompressedVocabulary
from memgraft.nn.fallback import HashFallback
from memgraft.nn.graft_layer import GraftLayer
from memgraft.nn.hashing import prime_sizes
from memgraft.nn.init import initialize

_SITE_SEED_STRIDE = 1_000_003


def build_layers(
    parts: Recipient, runtime: GraftRuntime, tokenizer: Any, vocabulary: CompressedVocabulary | None
) -> dict[int, GraftLayer]:
    """The graft layer of each site, drawn by the config's seed, where its block computes.

    Raises:
        ConfigError: the fallback needs a tokenizer that is not given.
        GraftError: the recipient's weights are nowhere, or a block has no values to write into.
    """
    config, bank = runtime.config, runtime.bank
    fallback = config.active_fallback
    sizes: list[list[list[int]]] = []
    if fallback is not None:
        vocabulary = _vocabulary(parts, config, tokenizer, vocabulary)
        sizes = prime_sizes(len(config.sites), fallback.table_sizes, fallback.num_heads)
    layers: dict[int, GraftLayer] = {}
    targets: dict[int, int] = {}
    if config.into == "values":
        targets = {site: value_projection(parts.layers[site], site).width for site in config.sites}
    for position, site in enumerate(config.sites):
        hashed = None
        if fallback is not None and vocabulary is not None:
            hashed = HashFallback(
                fallback,
                vocabulary=vocabulary,
                layer=site,
                sizes=sizes[position],
                seed=config.seed,
                pad_token_id=runtime.pad_token_id,
            )
        layer = GraftLayer(
            parts.hidden_dim,
            None if config.row_source == "none" else bank.value_dim,
            fallback=hashed,
            gate=config.gate,
            conv=config.conv,
            conv_kernel=config.conv_kernel,
            conv_dilation=config.conv_dilation,
            streams=config.streams,
            normalize_values=config.normalize_values,
            output_scale=config.init == "scalar",
            num_trainable_rows=bank.num_rows if config.row_source == "trained" else None,
            target_dim=targets.get(site),
        )
        initialize(layer, config.init, seed=config.seed + _SITE_SEED_STRIDE * (site + 1), std=config.init_std)
        weight = next(p for p in parts.layers[site].parameters() if p.is_floating_point())
        dtype = torch.float32 if config.dtype == "float32" else weight.dtype
        layer.to(device=_device_of(parts.layers[site], weight), dtype=dtype)
        layers[site] = layer.train(parts.model.training)
    return layers


def _device_of(block: nn.Module, weight: torch.Tensor) -> torch.device:
    """Where a block computes: accelerate keeps the weights it offloads on no device at all."""
    if weight.device.type != "meta":
        return weight.device
    for module in block.modules():
        device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
    raise GraftError("the recipient's weights are on the meta device and nothing brings them: load them first")


def _vocabulary(
    parts: Recipient, config: GraftConfig, tokenizer: Any, vocabulary: CompressedVocabulary | None
) -> CompressedVocabulary:
    assert config.fallback is not None
    if vocabulary is not None:
        return vocabulary
    if not config.fallback.compress:
        return CompressedVocabulary.identity(parts.vocab_size)
    if tokenizer is None:
        raise ConfigError(
            "the fallback hashes compressed tokens, for which it needs the recipient's tokenizer: pass "
            "graft(..., tokenizer=...), or FallbackConfig(compress=False)"
        )
    return CompressedVocabulary.from_tokenizer(tokenizer, vocab_size=parts.vocab_size)


def tap_of_site(bank: Memory, config: GraftConfig, num_layers: int) -> dict[int, int]:
    """For each site the place among the bank's taps that it reads.

    Raises:
        ConfigError: a site or tap that is not there, or it is open which tap feeds which site.
    """
    if config.sites[-1] >= num_layers:
        raise ConfigError(
            f"sites {config.sites} must lie in 0..{num_layers - 1}: the recipient has {num_layers} blocks"
        )
    taps = taps_of_sites(bank.taps, config.sites, config.taps)
    return {site: bank.taps.index(tap) for site, tap in zip(config.sites, taps, strict=True)}


def eos_ids(config: GraftConfig, model: nn.Module) -> tuple[int, ...]:
    """The ids that end a segment."""
    eos = config.eos_token_id
    if eos == "recipient":
        eos = text_config(model).eos_token_id
    if eos is None:
        return ()
    return (eos,) if isinstance(eos, int) else tuple(eos)


def pad_id(config: GraftConfig, model: nn.Module) -> int:
    """The id that stands left of a segment for the fallback's hashes."""
    pad = None if config.fallback is None else config.fallback.pad_token_id
    if pad is None:
        pad = getattr(text_config(model), "pad_token_id", None)  # CodeGen's and a few others have no such name
        # Some configs name a pad id that has no embedding, as -1.
        pad = pad if pad is not None and 0 <= pad < vocab_size_of(model) else 0
    return int(pad)


def add_child(block: nn.Module, name: str, layer: GraftLayer) -> None:
    """Puts a layer into its block, under the graft's name."""
    if CHILD not in block._modules:
        block.add_module(CHILD, nn.ModuleDict())
    grafts = block._modules[CHILD]
    assert isinstance(grafts, nn.ModuleDict)
    grafts[name] = layer
