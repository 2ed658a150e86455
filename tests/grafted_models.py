"""Tiny recipients of every tested family, and a bank for them."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaModel

from memgraft.bank import Bank
from memgraft.config import FallbackConfig, GraftConfig
from memgraft.integrations.transformers import graft, graft_layers
from memgraft.keyset import KeySet

VOCAB, PAD, EOS = 40, 0, 2
FIRST = 3  # the first ordinary token
NEW = 24  # tokens that the tests generate
# What transformers calls a cache, in calls and outputs: renamed in 5.24.
CACHE = "cache" if "cache" in inspect.signature(LlamaModel.forward).parameters else "past_key_values"

_COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": EOS,
    "max_position_embeddings": 256,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"head_dim": 8},
    # A sliding window shorter than the prompts, so that the cache's own bookkeeping is in play.
    "gemma3_text": {
        "head_dim": 8,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    },
    "gpt2": {"n_inner": 48},
    "gpt_neox": {},
    "olmo2": {},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": {
        "num_key_value_heads": 4,
        "moe_intermediate_size": 16,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 8,
        "q_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "n_shared_experts": 1,
    },
}


def recipient(family: str = "llama", *, seed: int = 0, endless: bool = True, **overrides: Any) -> Any:
    """A tiny model with fixed weights; ``endless`` never stops at EOS, so that runs compare at full length."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **{**_COMMON, **FAMILIES.get(family, {}), **overrides})
    model = AutoModelForCausalLM.from_config(config).eval()
    if endless and model.can_generate():
        model.generation_config.eos_token_id = None
    return model


def random_keys(num: int, *, seed: int = 0, max_order: int = 4) -> list[tuple[int, ...]]:
    """Distinct keys of ordinary tokens, with holes: a key's prefixes and suffixes need not be keys."""
    rng = np.random.default_rng(seed)
    keys: dict[tuple[int, ...], None] = {}
    while len(keys) < num:
        keys.setdefault(tuple(rng.integers(FIRST, VOCAB, size=rng.integers(1, max_order + 1)).tolist()))
    return list(keys)


def make_bank(
    path: Path,
    *,
    taps: tuple[int, ...] = (2,),
    num: int = 150,
    value_dim: int = 24,
    seed: int = 0,
    keys: list[tuple[int, ...]] | None = None,
    dtype: str = "fp32",
    tokenizer: dict[str, Any] | None = None,
) -> Bank:
    """A bank of random rows."""
    keys = random_keys(num, seed=seed) if keys is None else keys
    values = np.random.default_rng(seed + 1).normal(size=(len(keys), len(taps), value_dim)).astype(np.float32) * 5
    return Bank.create(
        path,
        keys=KeySet.from_keys(keys, vocab_size=VOCAB, reserved=(PAD, 1, EOS)),
        values=values,
        taps=taps,
        dtype=dtype,
        tokenizer=tokenizer,
    )


def config(**overrides: Any) -> GraftConfig:
    """Two sites, everything on, weights large enough that the memory matters."""
    fields: dict[str, Any] = {
        "sites": (0, 2),
        "init": "scratch",
        "init_std": 0.5,
        "fallback": FallbackConfig(table_size=31, num_heads=2, dim=8, compress=False),
    }
    return GraftConfig(**{**fields, **overrides})


def wake(model: Any) -> Any:
    """Give the zero-initialised convolutions weights, which would otherwise hide mistakes in them."""
    generator = torch.Generator().manual_seed(3)
    for layers in graft_layers(model).values():
        for layer in layers.values():
            if layer.conv is not None:
                weight = layer.conv.weight
                weight.data.copy_(torch.randn(weight.shape, generator=generator) * 0.5)
    return model


def grafted(bank: Bank, family: str = "llama", *, model_options: dict[str, Any] | None = None, **overrides: Any) -> Any:
    """A grafted tiny model whose every part is at work."""
    return wake(graft(recipient(family, **(model_options or {})), bank, config(**overrides)))


def word_tokenizer() -> Any:
    """One word per token of the tiny vocabulary; pads on the left."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", *(f"w{n}" for n in range(VOCAB - FIRST))]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<pad>",
        padding_side="left",
    )


def prompts(batch: int = 2, length: int = 20, *, seed: int = 0) -> torch.Tensor:
    """Ordinary tokens, (B, T)."""
    return torch.randint(FIRST, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def run(model: Any, ids: torch.Tensor, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences and logits (B, NEW, vocab) of a greedy run."""
    settings = {"max_new_tokens": NEW, "do_sample": False, **options}
    out = model.generate(ids, output_logits=True, return_dict_in_generate=True, **settings)
    return out.sequences, torch.stack(out.logits, dim=1)


@torch.no_grad()
def full_logits(model: Any, sequences: torch.Tensor, new: int = NEW, **options: Any) -> torch.Tensor:
    """Logits that predict the last ``new`` tokens, from one forward without a cache."""
    return model(sequences, use_cache=False, **options).logits[:, -new - 1 : -1]
