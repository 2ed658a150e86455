"""Cost of a graft: step time with one site against the model without, and the layer against its naive twin.

    python benches/python/graft_step.py [--tokens 4096] [--repeats 7] [--threads 2] [--json out.json]

Both arms of a comparison run interleaved in one process; reported are medians and the ratio of medians with the spread
of the paired ratios. Nothing is reported unless the arms agree first.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from memgraft.bank import Bank
from memgraft.config import FallbackConfig, GraftConfig
from memgraft.data import MemoryBatch
from memgraft.data.segments import from_batch
from memgraft.integrations.transformers import graft, optimizer_groups
from memgraft.keyset import KeySet
from memgraft.nn import CompressedVocabulary, GraftLayer, HashFallback, RowwiseAdamW
from memgraft.nn.hashing import prime_sizes
from memgraft.nn.init import initialize

VOCAB = 8192


def interleaved(arms: dict[str, Callable[[], None]], arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of every arm, run in turn; the order alternates so that drift hits both alike."""
    clock = time.perf_counter if arguments.clock == "wall" else time.process_time
    for arm in arms.values():
        arm()
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(arguments.repeats):
        names = list(arms) if turn % 2 == 0 else list(arms)[::-1]
        for name in names:
            start = clock()
            arms[name]()
            seconds[name].append(clock() - start)
    return seconds


def ratio(seconds: dict[str, list[float]], top: str, bottom: str) -> dict[str, float]:
    paired = sorted(a / b for a, b in zip(seconds[top], seconds[bottom], strict=True))
    return {
        f"{top}_ms": 1e3 * statistics.median(seconds[top]),
        f"{bottom}_ms": 1e3 * statistics.median(seconds[bottom]),
        "ratio": statistics.median(seconds[top]) / statistics.median(seconds[bottom]),
        "paired_low": paired[0],
        "paired_high": paired[-1],
    }


def zipf_tokens(batch: int, length: int, seed: int) -> torch.Tensor:
    """Ids with a natural skew, so that keys repeat and hit as they do in text."""
    rng = np.random.default_rng(seed)
    ranks = rng.zipf(1.15, size=(batch, length)) - 1
    return torch.from_numpy(np.minimum(ranks, VOCAB - 1).astype(np.int64))


def mined_bank(folder: Path, value_dim: int) -> Bank:
    """The frequent n-grams of a sample of the same stream."""
    counts: dict[tuple[int, ...], int] = {}
    for row in zipf_tokens(64, 1024, seed=99).tolist():
        for order in (2, 3, 4):
            for start in range(len(row) - order + 1):
                key = tuple(row[start : start + order])
                counts[key] = counts.get(key, 0) + 1
    kept = {key: count for key, count in counts.items() if count >= 2}
    values = np.random.default_rng(0).normal(size=(len(kept), 1, value_dim)).astype(np.float32)
    keys = KeySet.from_keys(list(kept), counts=list(kept.values()), vocab_size=VOCAB)
    return Bank.create(folder / "bank", keys=keys, values=values, taps=(8,), dtype="bf16")


def step_time(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Forward, backward and AdamW step of a 6-layer d=512 Llama, with one site and without; the batch is ready."""
    torch.manual_seed(0)
    base = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=512,
            intermediate_size=1408,
            num_hidden_layers=6,
            num_attention_heads=8,
            num_key_value_heads=8,
            use_cache=False,
        )
    )
    bank = mined_bank(folder, arguments.value_dim)
    # As configured by default, but for the tokenizer: hashing raw ids costs the same.
    with_graft = graft(copy.deepcopy(base), bank, GraftConfig(sites=(1,), fallback=FallbackConfig(compress=False)))
    fallback = FallbackConfig(compress=False, sparse_gradients=True)
    sparse = graft(copy.deepcopy(base), bank, GraftConfig(sites=(1,), fallback=fallback))
    ids = zipf_tokens(arguments.tokens // 512, 512, seed=1)
    memory = MemoryBatch.look_up(bank, ids, from_batch({"input_ids": ids})).stage(bank)
    assert memory.values is not None
    with torch.no_grad():
        agree = torch.equal(with_graft(ids, memgraft=memory).logits, base(ids).logits)
    if not agree:
        raise SystemExit("the fresh graft changes the model: nothing is measured on wrong results")

    def stepper(model: Any, optimizer: torch.optim.Optimizer, **inputs: Any) -> Callable[[], None]:
        def step() -> None:
            optimizer.zero_grad()
            model(input_ids=ids, labels=ids, **inputs).loss.backward()
            optimizer.step()

        return step

    # Fused, as the Trainer has it by default.
    adam = torch.optim.AdamW(optimizer_groups(with_graft, lr=1e-4), fused=True)
    rowwise = RowwiseAdamW(optimizer_groups(sparse, lr=1e-4, rowwise=True), fused=True)
    arms = {
        "with": stepper(with_graft, adam, memgraft=memory),
        "with_sparse_rowwise_tables": stepper(sparse, rowwise, memgraft=memory),
        "without": stepper(base, torch.optim.AdamW(base.parameters(), lr=1e-4, fused=True)),
    }
    hits = memory.rows >= 0
    seconds = interleaved(arms, arguments)
    return {
        "default": ratio(seconds, "with", "without"),
        "sparse_rowwise": ratio(seconds, "with_sparse_rowwise_tables", "without"),
        "hit_share": float(hits.float().mean()),
        "unique_share_of_hits": len(memory.values) / max(int(hits.sum()), 1),
    }


def layer_against_twin(arguments: argparse.Namespace) -> dict[str, Any]:
    """The layer on unique rows and listed misses against itself fed one row per hit and the fallback everywhere.

    Two thirds of the positions hit, 40 % of the rows that they read are distinct; forward and backward.
    """
    torch.manual_seed(0)
    settings = FallbackConfig(compress=False, sparse_gradients=True)
    fallback = HashFallback(
        settings,
        vocabulary=CompressedVocabulary.identity(VOCAB),
        layer=1,
        sizes=prime_sizes(1, settings.table_sizes, settings.num_heads)[0],
        seed=0,
        pad_token_id=0,
    )
    batch, length = arguments.tokens // 512, 512
    tokens = zipf_tokens(batch, length, seed=2)
    segments = torch.zeros(batch, length, dtype=torch.int64)
    results = {}
    for name, hashed in (("with_fallback", fallback), ("memory_alone", None)):
        layer = GraftLayer(512, arguments.twin_value_dim, fallback=hashed)
        initialize(layer, "scratch", seed=0)
        count = batch * length
        num_hits = 2 * count // 3
        unique = int(0.4 * num_hits)
        read = torch.cat([torch.arange(unique), torch.randint(0, unique, (num_hits - unique,))])
        hit = torch.randperm(count)[:num_hits].sort().values
        inverse = torch.full((count,), -1)
        inverse[hit] = read[torch.randperm(num_hits)]
        values = torch.randn(unique, arguments.twin_value_dim).bfloat16()
        per_hit = values[inverse[hit]]
        everyone = torch.full((count,), -1)
        everyone[hit] = torch.arange(num_hits)
        misses = (inverse < 0).nonzero().squeeze(1)
        hidden = torch.randn(batch, length, 512, requires_grad=True)
        shape = (batch, length)
        inputs = {"unique": (values, inverse.view(shape), misses), "naive": (per_hit, everyone.view(shape), None)}
        with torch.no_grad():
            outs = [
                layer(hidden, rows, index, segments, tokens, misses_M=listed)[0]
                for rows, index, listed in inputs.values()
            ]
        torch.testing.assert_close(outs[0], outs[1], atol=1e-5, rtol=1e-5)

        def runner(
            rows: torch.Tensor,
            index: torch.Tensor,
            listed: torch.Tensor | None,
            layer: GraftLayer = layer,
            hidden: torch.Tensor = hidden,
        ) -> Callable[[], None]:
            def run() -> None:
                layer.zero_grad()
                layer(hidden, rows, index, segments, tokens, misses_M=listed)[0].sum().backward()

            return run

        arms = {arm: runner(*given) for arm, given in inputs.items()}
        results[name] = ratio(interleaved(arms, arguments), "naive", "unique")
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096, help="tokens a step, a multiple of 512")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--value-dim", type=int, default=576, help="bank width in the step benchmark (SmolLM2's)")
    parser.add_argument("--twin-value-dim", type=int, default=2048, help="bank width in the layer benchmark")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: processor time, on a busy machine"
    )
    parser.add_argument("--json", type=Path, help="write the results here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        results = {
            "torch": torch.__version__,
            "machine": platform.machine(),
            "threads": arguments.threads,
            "clock": arguments.clock,
            "tokens": arguments.tokens,
            "step": step_time(arguments, Path(folder)),
            "layer": layer_against_twin(arguments),
        }
    text = json.dumps(results, indent=2)
    print(text)
    if arguments.json is not None:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
