"""What the trained graft does: a sample with the KV cache, and its gates on held-out text."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from memgraft.bank import Bank
from memgraft.corpus import Corpus
from memgraft.experiments import TokenWindows, spread_windows
from memgraft.tokenizer_file import load_tokenizer_file

_BINS = 40


def load_recipient(folder: Path, bank: Bank) -> Any:
    """The recipient of ``<folder>/recipient`` with the graft of ``<folder>/graft`` attached, in evaluation mode."""
    from transformers import AutoModelForCausalLM

    from memgraft.harvesting.gguf import quiet_transformers
    from memgraft.torch import load_graft

    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(folder / "recipient", dtype=torch.float32)
    load_graft(model, folder / "graft", bank=bank)
    return model.eval()


def sample(model: Any, bank: Bank, tokenizer: Path, prompt: str, *, new_tokens: int, seed: int = 0) -> dict[str, Any]:
    """Generates with the KV cache; facts for the report."""
    codec = load_tokenizer_file(tokenizer)
    ids = codec.encode(prompt, add_special_tokens=False).ids
    prompt_ids = torch.tensor([ids])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        started = time.perf_counter()
        output = model.generate(
            prompt_ids,
            attention_mask=torch.ones_like(prompt_ids),
            max_new_tokens=new_tokens,
            do_sample=True,
            temperature=0.8,
            top_k=40,
            use_cache=True,
        )[0]
        seconds = time.perf_counter() - started
    rows, _ = bank.lookup(output.numpy())
    return {
        "prompt": prompt,
        "text": codec.decode(output[len(ids) :].tolist()),
        "new_tokens": len(output) - len(ids),
        "tokens_per_second": round((len(output) - len(ids)) / seconds, 1),
        "hit_share": round(float((rows >= 0).mean()), 4),
    }


def gates(model: Any, bank: Bank, held_out: Corpus, *, seq_len: int, at_most: int = 48) -> Mapping[str, Any]:
    """Gate histograms and the relative size of what is added, hits and misses apart, on held-out windows."""
    from memgraft.data import MemoryBatch
    from memgraft.experiments.windows import SEGMENTS_COLUMN
    from memgraft.torch import record_telemetry

    windows = TokenWindows(held_out, seq_len)
    with record_telemetry(model) as telemetry, torch.no_grad():
        for window in spread_windows(windows, at_most):
            example = windows[window]
            tokens, segments = example["input_ids"][None], example[SEGMENTS_COLUMN][None]
            model(input_ids=tokens, memgraft=MemoryBatch.look_up(bank, tokens, segments), use_cache=False)
    ((_, site),) = telemetry.sites
    statistics, summary = telemetry.sites[("default", site)], telemetry.summary()
    folded = statistics.gates.reshape(statistics.gates.shape[0], _BINS, -1).sum(-1)
    found: dict[str, Any] = {"site": site, "edges": [edge / _BINS for edge in range(_BINS + 1)]}
    for name, orders in (("hit", slice(1, None)), ("miss", slice(0, 1))):
        prefix = f"default/site{site}/{name}"
        found[name] = {
            "histogram": [int(count) for count in folded[orders].sum(0)],
            "mean": summary.get(f"{prefix}/gate_mean", 0.0),
            "ratio": summary.get(f"{prefix}/injected_norm", 0.0),
        }
    return found
