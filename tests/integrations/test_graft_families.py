"""Many families, each in the modes that differ between them; what its own packing cannot do is not asked of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING

from grafted_models import FAMILIES, PAD, config, prompts, recipient, wake
from memgraft.integrations.transformers import detach, disabled, graft
from memgraft.integrations.transformers.families import TESTED_FAMILIES

pytestmark = pytest.mark.slow

NEW = 12
TOLERANCE = {"atol": 1e-6, "rtol": 0}
_MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_DEEPSEEK = {
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
}
_HEADS = {"head_dim": 8}
# Windows shorter than the prompts, so that the cache's own bookkeeping is in play.
_SLIDING = {"sliding_window": 8}
_LINEAR = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
MORE: dict[str, dict[str, Any]] = {
    "apertus": {},
    "arcee": {},
    "bamba": {**_MAMBA, "attn_layer_indices": [1]},
    "biogpt": {},
    "bitnet": {},
    "cohere": {},
    "cohere2": _SLIDING,
    "cwm": {**_HEADS, **_SLIDING},
    "deepseek_v2": {
        **_DEEPSEEK,
        "num_key_value_heads": 4,
        "kv_lora_rank": 8,
        "q_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
    },
    "diffllama": {},
    "doge": _MOE,
    "dots1": {**_DEEPSEEK, **_HEADS},
    "ernie4_5": _HEADS,
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16},
    "exaone4": _SLIDING,
    "falcon_h1": {**_MAMBA, "mamba_n_heads": 4, "mamba_d_ssm": 32},
    "flex_olmo": _MOE,
    "gemma": _HEADS,
    "gemma2": {**_HEADS, **_SLIDING},
    "glm": _HEADS,
    "glm4": _HEADS,
    "glm4_moe": {**_DEEPSEEK, **_HEADS},
    "gpt_bigcode": {},
    "gpt_oss": {**_MOE, **_HEADS, **_SLIDING},
    "granite": {},
    "granitemoe": _MOE,
    "granitemoehybrid": {
        **_MOE,
        **_MAMBA,
        "shared_intermediate_size": 16,
        "layer_types": ["mamba", "attention", "mamba"],
        "position_embedding_type": None,
    },
    "granitemoeshared": {**_MOE, "shared_intermediate_size": 16},
    "helium": _HEADS,
    "hunyuan_v1_dense": _HEADS,
    "hunyuan_v1_moe": {**_MOE, **_HEADS, "moe_topk": 2},
    "jamba": {
        **_MOE,
        "mamba_d_state": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "use_mamba_kernels": False,
    },
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"], "block_ff_dim": 48},
    "llama4_text": {**_MOE, **_HEADS, "intermediate_size_mlp": 48},
    "minimax_m2": {**_MOE, **_HEADS},
    "ministral": {**_HEADS, **_SLIDING},
    "mistral": _SLIDING,
    "nemotron": {},
    "olmo": {},
    "olmo3": _SLIDING,
    "olmoe": _MOE,
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "persimmon": {"num_key_value_heads": 4},
    "phi": {},
    "phi3": {},
    "phimoe": _MOE,
    "qwen2": {},
    "qwen2_moe": {**_MOE, "shared_expert_intermediate_size": 16, "decoder_sparse_step": 1},
    "qwen3_5_text": {**_HEADS, **_LINEAR},
    "qwen3_moe": {**_MOE, **_HEADS},
    "qwen3_next": {**_MOE, **_HEADS, **_LINEAR, "shared_expert_intermediate_size": 16},
    "seed_oss": _HEADS,
    "smollm3": {},
    "stablelm": {},
    "starcoder2": {},
    "vaultgemma": {**_HEADS, **_SLIDING},
    "xglm": {"d_model": 32, "num_layers": 3, "attention_heads": 4, "ffn_dim": 48},
}


def test_the_list_that_errors_quote_is_what_is_tested() -> None:
    assert set(TESTED_FAMILIES) == {*FAMILIES, *MORE}
    assert list(TESTED_FAMILIES) == sorted(TESTED_FAMILIES)


def logits_of(model: Any, ids: torch.Tensor, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences and logits (B, NEW, vocab) of a greedy run."""
    out = model.generate(
        ids, max_new_tokens=NEW, do_sample=False, output_logits=True, return_dict_in_generate=True, **options
    )
    return out.sequences, torch.stack(out.logits, dim=1)


def packed_and_separate(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of documents in one row, told apart by position ids, and of each document alone."""
    documents = [prompts(1, length, seed=length) for length in (7, 1, 15, 4)]
    positions = torch.cat([torch.arange(document.shape[1]) for document in documents])[None]
    packed = model(torch.cat(documents, dim=1), position_ids=positions, use_cache=False).logits
    return packed, torch.cat([model(document, use_cache=False).logits for document in documents], dim=1)


@pytest.mark.parametrize("family", MORE)
def test_family(family: str, bank: Any) -> None:
    if family not in CONFIG_MAPPING:
        pytest.skip(f"transformers is older than {family}")
    model = recipient(family, **MORE[family])
    ids = prompts()
    with torch.no_grad():
        plain = model(ids).logits
        graft(model, bank, config(init="zero"))
        assert torch.equal(model(ids).logits, plain), "attaching changes the model"
        detach(model)
        wake(graft(model, bank, config()))
        with disabled(model):
            assert torch.equal(model(ids).logits, plain)
            packed, separate = packed_and_separate(model)
        assert (model(ids).logits - plain).abs().max() > 0.01, "the memory does not matter"
        # Some families ignore position ids, or carry a recurrent state over them, with a graft or without.
        if (packed - separate).abs().max() < 1e-6:
            torch.testing.assert_close(*packed_and_separate(model), **TOLERANCE)
        sequences, logits = logits_of(model, ids)
        torch.testing.assert_close(logits, model(sequences, use_cache=False).logits[:, -NEW - 1 : -1], **TOLERANCE)
        static = logits_of(model, ids, cache_implementation="static", disable_compile=True)
        torch.testing.assert_close(static[1], logits, **TOLERANCE)
        padded = torch.cat([torch.full((2, 5), PAD), ids], dim=1)
        mask = (torch.arange(padded.shape[1]) >= 5).long().expand_as(padded).contiguous()
        torch.testing.assert_close(logits_of(model, padded, attention_mask=mask)[1], logits, **TOLERANCE)
        beams = [model.generate(ids, max_new_tokens=NEW, num_beams=4, use_cache=cached) for cached in (True, False)]
        assert torch.equal(*beams)
    model.train()
    model(ids, labels=ids).loss.backward()
    without = [name for name, p in model.named_parameters() if ".memgraft." in name and p.grad is None]
    assert without == []


def test_hyper_connections(bank: Any) -> None:
    if "deepseek_v4" not in CONFIG_MAPPING:
        pytest.skip("transformers is older than deepseek_v4")
    options = {
        **_MOE,
        "n_routed_experts": 4,
        "head_dim": 8,
        "q_lora_rank": 8,
        "o_lora_rank": 8,
        "o_groups": 2,
        "num_key_value_heads": 1,
        "index_n_heads": 2,
        "index_head_dim": 8,
        "layer_types": ["sliding_attention"] * 3,
        "partial_rotary_factor": 0.5,
        "hc_mult": 3,
    }
    model = recipient("deepseek_v4", **options)
    ids = prompts()
    with torch.no_grad():
        plain = model(ids).logits
        wake(graft(model, bank, config(streams=3)))
        assert (model(ids).logits - plain).abs().max() > 0.01
        sequences, logits = logits_of(model, ids)
        torch.testing.assert_close(logits, model(sequences, use_cache=False).logits[:, -NEW - 1 : -1], **TOLERANCE)
