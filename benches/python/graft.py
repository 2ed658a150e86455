"""The recipient's side: the graft layer beside its naive twin, and a training step with and without one site.

The recipient is a 6-layer Llama of width 512 trained from scratch on the bench text; the site is before block 1, with
convolution and hashed fallback, as in the paper's one-site run.
"""

import shutil
from typing import Any

import numpy as np
import torch
from banks import make_bank
from contest import Contender, WrongAnswer, contest
from settings import Settings, main
from transformers import LlamaConfig, LlamaForCausalLM

from memgraft import Bank, KeySet
from memgraft.config import FallbackConfig, GraftConfig
from memgraft.data.segments import whole_rows
from memgraft.nn.naive import naive_graft
from memgraft.torch import MemoryBatch, graft, graft_layers, optimizer_groups

WIDTH, LAYERS, SITE = 512, 6, 1


def recipient(vocab_size: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config)


def site(bank: Bank, vocab_size: int) -> LlamaForCausalLM:
    """A grafted recipient whose update is not 0, so that no part of the arithmetic is trivial."""
    # No tokenizer here: raw ids are hashed instead of compressed ones, which costs the same.
    fallback = FallbackConfig(compress=False, table_size=8192)
    config = GraftConfig(sites=(SITE,), fallback=fallback, init="scratch", eos_token_id=None)
    return graft(recipient(vocab_size), bank, config)


def prepared(bank: Bank, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a graft layer reads for ``tokens``."""
    segments = whole_rows(tokens)
    memory = MemoryBatch.look_up(bank, tokens, segments).stage(bank)
    assert memory.inverse is not None
    hidden = torch.randn(*tokens.shape, WIDTH, generator=torch.Generator().manual_seed(1))
    return {
        "hidden_BTD": hidden,
        "values_UV": memory.floats()[:, 0],
        "inverse_BT": memory.inverse,
        "segments_BH": segments,
        "tokens_BH": tokens,
        "misses_M": memory.misses,
    }


def layer_contest(settings: Settings, bank: Bank, tokens: torch.Tensor) -> list[dict[str, Any]]:
    """One site's forward, fast and naive: nanoseconds a token, float32."""
    model = site(bank, bank.index.vocab_size)
    (layer,) = (layer for layers in graft_layers(model).values() for layer in layers.values())
    everything, few = prepared(bank, tokens), prepared(bank, tokens[:1, :64])

    def fast(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return layer(**inputs)[0]

    def naive() -> torch.Tensor:
        names = ("hidden_BTD", "values_UV", "inverse_BT", "segments_BH", "tokens_BH")
        return naive_graft(layer, *(few[name] for name in names))

    with torch.no_grad():
        if not torch.allclose(fast(few), naive(), rtol=1e-4, atol=1e-5):
            raise WrongAnswer("the graft layer and its naive twin differ")
        return contest(
            [
                Contender(f"graft layer, {tokens.numel()} tokens", tokens.numel(), lambda: fast(everything)),
                Contender("graft layer, 64 tokens", 64, lambda: fast(few)),
                Contender("naive twin, 64 tokens", 64, naive),
            ],
            settings.rounds,
        )


def step_contest(settings: Settings, bank: Bank, tokens: torch.Tensor) -> list[dict[str, Any]]:
    """One optimizer step, forward and backward: nanoseconds a token."""
    vocab_size = bank.index.vocab_size
    plain, grafted = recipient(vocab_size), site(bank, vocab_size)
    # Fused, as the Trainer has it by default.
    plain_optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-4, fused=True)
    grafted_optimizer = torch.optim.AdamW(optimizer_groups(grafted, lr=1e-4), fused=True)
    segments = whole_rows(tokens)
    staged = MemoryBatch.look_up(bank, tokens, segments).stage(bank)

    def step(model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, **extra: Any) -> None:
        loss = model(input_ids=tokens, labels=tokens, use_cache=False, **extra).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def with_memory() -> None:
        step(grafted, grafted_optimizer, memgraft=staged)

    def all_in_the_step() -> None:
        step(grafted, grafted_optimizer, memgraft=MemoryBatch.look_up(bank, tokens, segments).stage(bank))

    return contest(
        [
            Contender("step of the recipient alone", tokens.numel(), lambda: step(plain, plain_optimizer)),
            Contender("step with one site, memory staged ahead", tokens.numel(), with_memory),
            Contender("step with one site, lookup and gather in it", tokens.numel(), all_in_the_step),
        ],
        settings.rounds,
    )


def group(settings: Settings) -> dict[str, Any]:
    # One thread: a pool that waits for a core somebody else holds would be what is measured.
    torch.set_num_threads(1)
    num_rows, shape = (20_000, (1, 256)) if settings.quick else (250_000, (2, 512))
    keys = KeySet.open(settings.keys)
    bank = make_bank(
        settings.scratch_path / "graft", keys.select(np.arange(min(num_rows, len(keys)))), 4096, plain=True
    )
    text = np.fromfile(f"{settings.corpus}.bin", dtype=np.uint16)[: shape[0] * shape[1]]
    tokens = torch.from_numpy(text.astype(np.int64)).view(shape)
    report = {
        "unit": "token",
        "tokens": tokens.numel(),
        "threads": torch.get_num_threads(),
        "recipient": {"width": WIDTH, "layers": LAYERS, "vocab_size": keys.vocab_size, "site": SITE},
        "layer": layer_contest(settings, bank, tokens),
        "step": step_contest(settings, bank, tokens),
    }
    shutil.rmtree(bank.path)
    return report


if __name__ == "__main__":
    main(group)
