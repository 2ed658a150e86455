"""What the graft costs on a CUDA device: copies, one site, training steps, decoding, harvest. Ratios in one run.

    python benches/gpu.py --out FILE.json [--seconds 420] [--groups bus,site,step,decode,harvest]
    python benches/gpu.py --out FILE.json --quick --device cpu      # does it run; no figure means anything

Needs no network: text is drawn from a fixed Markov chain, models and rows are random. A group that fails is recorded
with its error, and the others go on. Contenders of a group run in turn, round by round; a ratio is the median over the
rounds of own time by the first contender's in the same round.
"""

import argparse
import gc
import inspect
import json
import shutil
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch.utils.data import DataLoader, Dataset
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

import memgraft
from memgraft.bank.writer import BankWriter
from memgraft.config import FallbackConfig, GraftConfig
from memgraft.corpus import CorpusWriter
from memgraft.data import GraftCollator, MemoryBatch, StagingRing, prefetch
from memgraft.harvesting import open_donor
from memgraft.integrations.transformers import graft, graft_layers
from memgraft.nn.graft_layer import GraftLayer
from memgraft.nn.init import initialize
from memgraft.torch import CapturedStep


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    vocab: int = 32_768
    text_tokens: int = 30_000_000
    rows: int = 3_000_000
    value_dim: int = 2048
    width: int = 2048
    ffn: int = 5632
    blocks: int = 18
    heads: int = 16
    sequences: int = 8
    length: int = 1024
    micro_steps: int = 4
    rounds: int = 5
    new_tokens: int = 128
    harvest_keys: int = 100_000
    bus_bytes: int = 256 << 20


QUICK = Sizes(
    vocab=512, text_tokens=60_000, rows=2_000, value_dim=64, width=64, ffn=96, blocks=2, heads=2, sequences=2,
    length=64, micro_steps=2, rounds=2, new_tokens=8, harvest_keys=200, bus_bytes=1 << 20,
)  # fmt: skip


class Bench:
    """Sizes, device, material and results."""

    def __init__(self, sizes: Sizes, device: str, scratch: Path) -> None:
        self.sizes, self.device, self.scratch = sizes, torch.device(device), scratch
        self.cuda = self.device.type == "cuda"
        self._bank: memgraft.Bank | None = None

    def sync(self) -> float:
        """Seconds, after all work of the device is done."""
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def timed(self, work: Callable[[], Any]) -> float:
        started = self.sync()
        work()
        return self.sync() - started

    def contest(self, contenders: dict[str, Callable[[], Any]], rounds: int, warm: int = 1) -> dict[str, Any]:
        """Seconds of every contender in every round, medians, and ratios by the first one."""
        for work in contenders.values():
            for _ in range(warm):
                work()
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        names = list(contenders)
        for number in range(rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                seconds[name].append(self.timed(contenders[name]))
        first = seconds[names[0]]
        return {
            name: {
                "seconds": round(statistics.median(own), 6),
                "ratio": round(statistics.median(a / b for a, b in zip(own, first, strict=True)), 4),
                "rounds": [round(value, 6) for value in own],
            }
            for name, own in seconds.items()
        }

    def text(self) -> memgraft.Corpus:
        """Tokens of a chain: each state has few successors, so that n-grams repeat as in text."""
        path = self.scratch / "text.bin"
        if not path.exists():
            sizes, rng = self.sizes, np.random.default_rng(0)
            ranks = 1 / np.arange(1, sizes.vocab) ** 1.05
            table = rng.choice(sizes.vocab - 1, size=(sizes.vocab, 16), p=ranks / ranks.sum()) + 1
            chains = 1000
            state = rng.integers(1, sizes.vocab, size=chains)
            steps = []
            for _ in range(sizes.text_tokens // chains):
                state = table[state, np.minimum(rng.geometric(0.3, size=chains) - 1, 15)]
                steps.append(state)
            lines = np.stack(steps, axis=1)
            with CorpusWriter(path, vocab_size=sizes.vocab, special_ids=[0]) as writer:
                for line in lines:
                    writer.add(line)
                writer.finish()
        return memgraft.Corpus.open(path)

    def bank(self) -> memgraft.Bank:
        """Mined n-grams of the text with random bf16 rows."""
        if self._bank is None:
            sizes = self.sizes
            keys = memgraft.mine(self.text(), orders=(2, 3, 4), budget=sizes.rows, vocab_size=sizes.vocab)
            rng = np.random.default_rng(1)
            block = rng.standard_normal((4096, 1, sizes.value_dim), dtype=np.float32)
            stored = (block.view(np.uint32) >> 16).astype(np.uint16)
            writer = BankWriter(
                self.scratch / "bank", keys=keys, taps=(8,), value_dim=sizes.value_dim, donor={}, tokenizer={}
            )
            with writer:
                for start in range(0, len(keys), len(stored)):
                    writer.write_stored(start, stored[: min(len(stored), len(keys) - start)])
                self._bank = writer.finish()
        return self._bank

    def model(self) -> Any:
        """The recipient in bf16, random weights."""
        sizes = self.sizes
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=sizes.vocab, hidden_size=sizes.width, intermediate_size=sizes.ffn,
            num_hidden_layers=sizes.blocks, num_attention_heads=sizes.heads, num_key_value_heads=sizes.heads,
            max_position_embeddings=max(2048, sizes.length), tie_word_embeddings=True, bos_token_id=None,
            eos_token_id=None, pad_token_id=None,
        )  # fmt: skip
        with self.device:
            return LlamaForCausalLM(config).to(torch.bfloat16)

    def clean(self) -> None:
        """Give back what nobody holds any more."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()

    def grafted(self, model: Any, *, kernel: bool | None = None, control: Any = None, fallback: bool = True) -> Any:
        config = GraftConfig(
            sites=(1,),
            init="scratch",
            control=control,
            fallback=FallbackConfig(table_size=1 << 17, compress=False) if fallback else None,
            dtype="recipient",
        )
        graft(model, self.bank(), config)
        for layers in graft_layers(model).values():
            for layer in layers.values():
                layer.kernel = kernel
        return model


class Windows(Dataset):
    """Windows of the text in a fixed random order."""

    def __init__(self, corpus: memgraft.Corpus, length: int, count: int) -> None:
        self.corpus, self.length = corpus, length
        self.starts = np.random.default_rng(2).integers(0, corpus.num_tokens - length, size=count)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        start = int(self.starts[number])
        ids = torch.from_numpy(np.asarray(self.corpus.tokens(start, start + self.length)).astype(np.int64))
        return {"input_ids": ids, "labels": ids.clone()}


def batches(bench: Bench, count: int) -> list[torch.Tensor]:
    windows = Windows(bench.text(), bench.sizes.length, count * bench.sizes.sequences)
    ids = [windows[number]["input_ids"] for number in range(len(windows))]
    return [torch.stack(ids[n : n + bench.sizes.sequences]) for n in range(0, len(ids), bench.sizes.sequences)]


def memory_of(bench: Bench, ids: torch.Tensor) -> MemoryBatch:
    return MemoryBatch.look_up(bench.bank(), ids, torch.zeros(ids.shape, dtype=torch.int32))


def bus(bench: Bench) -> dict[str, Any]:
    """Bytes a second to the device: one pinned block, and staged values out of the ring."""
    block = torch.empty(bench.sizes.bus_bytes, dtype=torch.uint8, pin_memory=bench.cuda)
    there = torch.empty_like(block, device=bench.device)
    ring = StagingRing(2)
    memory = memory_of(bench, torch.cat(batches(bench, bench.sizes.micro_steps))).stage(bench.bank(), ring)
    assert memory.values is not None
    values = memory.values
    target = torch.empty_like(values, device=bench.device)
    found = bench.contest(
        {
            "pinned block": lambda: there.copy_(block, non_blocking=True),
            "staged values": lambda: target.copy_(values, non_blocking=True),
            "staged memory, all tensors": lambda: memory.start_copy(bench.device),
        },
        rounds=20,
        warm=3,
    )
    whole = sum(tensor.numel() * tensor.element_size() for tensor in memory.tensors())
    sizes = {"pinned block": block.numel(), "staged values": values.numel() * values.element_size()}
    for name, facts in found.items():
        facts["bytes"] = sizes.get(name, whole)
        facts["gigabytes_per_second"] = round(facts["bytes"] / facts["seconds"] / 1e9, 2)
        facts["of_pinned"] = round(facts["gigabytes_per_second"] / found["pinned block"]["gigabytes_per_second"], 3)
    return found


def site(bench: Bench) -> dict[str, Any]:
    """One site alone, forward and backward, torch path and kernel; bytes beside what the memory moves."""
    sizes = bench.sizes
    positions = sizes.sequences * sizes.length
    rows = max(1, positions // 4)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(sizes.sequences, sizes.length, sizes.width, generator=generator)
    values = torch.randn(rows, sizes.value_dim, generator=generator)
    inverse = torch.randint(-1, rows, (sizes.sequences, sizes.length), generator=generator)
    tokens = torch.randint(0, sizes.vocab, (sizes.sequences, sizes.length), generator=generator)
    segments = torch.zeros(sizes.sequences, sizes.length, dtype=torch.int32)
    inputs = [x.to(bench.device) for x in (hidden.bfloat16(), values.bfloat16(), inverse, segments, tokens)]
    contenders: dict[str, Callable[[], Any]] = {}
    for fused in (False, True) if bench.cuda else (False,):
        layer = GraftLayer(sizes.width, sizes.value_dim, fallback=None)
        initialize(layer, "scratch", seed=1, std=0.02)
        layer.to(bench.device, torch.bfloat16).kernel = fused
        own = inputs[0].clone().requires_grad_()

        def forward(layer: Any = layer) -> None:
            with torch.no_grad():
                layer(*inputs)

        def both(layer: Any = layer, own: torch.Tensor = own) -> None:
            own.grad = None
            layer.zero_grad()
            layer(own, *inputs[1:])[0].sum().backward()

        name = "kernel" if fused else "torch"
        contenders[f"{name}, forward"], contenders[f"{name}, forward and backward"] = forward, both
    found = bench.contest(contenders, rounds=30, warm=5)
    big = torch.empty(1 << (30 if bench.cuda else 20), dtype=torch.uint8, device=bench.device)
    other = torch.empty_like(big)
    copied = bench.contest({"copy": lambda: other.copy_(big)}, rounds=10, warm=2)["copy"]["seconds"]
    least = positions * sizes.width * 2 * 3 + rows * sizes.width * 2 * 2
    found["facts"] = {
        "positions": positions,
        "distinct_rows": rows,
        "memory_gigabytes_per_second": round(2 * big.numel() / copied / 1e9, 1),
        "least_bytes_forward": least,
        "least_seconds_forward": least / (2 * big.numel() / copied),
    }
    return found


class Arm:
    """One contender of the steps: a model, its optimizer and its loader."""

    def __init__(self, bench: Bench, windows: Windows, options: dict[str, Any] | None, hot: float = 0) -> None:
        self.bench, memory = bench, options is not None
        self.model = bench.model().train()
        if options is not None:
            bench.grafted(self.model, **options)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=bench.cuda)
        plain = DataLoader(
            windows,
            batch_size=bench.sizes.sequences,
            collate_fn=GraftCollator(bench.bank()) if memory else None,
            num_workers=2 if bench.cuda else 0,
            persistent_workers=bench.cuda,
            pin_memory=bench.cuda and not memory,
        )
        kept = int(hot * bench.bank().num_rows)
        self.ahead: Any = plain
        if memory:
            self.ahead = prefetch(plain, bench.bank(), device=bench.device, depth=2, hot_rows=kept)
        self.iterator = iter(self.ahead)
        self.waits: list[float] = []

    def step(self) -> None:
        """Forward and backward of the micro batches, and the optimizer."""
        for _ in range(self.bench.sizes.micro_steps):
            started = time.perf_counter()
            batch = next(self.iterator, None)
            if batch is None:
                self.iterator = iter(self.ahead)
                batch = next(self.iterator)
            self.waits.append(time.perf_counter() - started)
            batch = {key: value.to(self.bench.device, non_blocking=True) for key, value in batch.items()}
            self.model(**batch, use_cache=False).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def staged(self) -> dict[str, Any]:
        """What the loader moved for a step."""
        held, steps = self.ahead.facts, self.bench.sizes.micro_steps
        return {
            "bytes_per_step": round(held.num_bytes / held.num_batches * steps),
            "hot_rows_per_step": round(held.num_hot_rows / held.num_batches * steps),
            "hot_bytes": held.hot_bytes,
            "hit_share": round(held.num_hits / held.num_positions, 4),
            "distinct_rows_per_hit": round(held.unique_share, 4),
            "stage_seconds_per_step": round(held.stage_seconds / held.num_batches * steps, 5),
        }


def step(bench: Bench) -> dict[str, Any]:
    """A training step: each way of having a memory beside the recipient alone; memory ahead on a stream of its own."""
    sizes = bench.sizes
    windows = Windows(bench.text(), sizes.length, sizes.sequences * sizes.micro_steps * (sizes.rounds + 2))
    arms: dict[str, tuple[dict[str, Any], float]] = {
        "engram": ({"control": "fallback_only"}, 0),
        "graft": ({}, 0),
        "graft, torch path": ({"kernel": False}, 0),
        "graft, no fallback": ({"fallback": False}, 0),
        **{f"graft, {share:.0%} hot rows": ({}, share) for share in (0.1, 0.5, 1.0)},
    }
    none, found = Arm(bench, windows, None), {}
    tokens = sizes.sequences * sizes.length * sizes.micro_steps
    # Two by two, or all the models would have to fit on the card at once.
    for name, (options, hot) in arms.items():
        before = torch.cuda.memory_allocated() if bench.cuda else 0
        arm = Arm(bench, windows, options, hot)
        if bench.cuda:
            torch.cuda.reset_peak_memory_stats()
        arm.step()
        peak = torch.cuda.max_memory_allocated() - before if bench.cuda else None
        pair = bench.contest({"none": none.step, name: arm.step}, rounds=sizes.rounds)
        for key, facts, own in (("none", pair["none"], none), (name, pair[name], arm)):
            waited = own.waits[-sizes.micro_steps * sizes.rounds :]
            facts["tokens_per_second"] = round(tokens / facts["seconds"])
            facts["wait_share"] = round(sum(waited) / max(1e-9, sum(facts["rounds"])), 4)
            if key == name:
                facts |= {"speed_by_none": round(1 / facts["ratio"], 4), "peak_bytes": peak, "staged": arm.staged()}
        found[name] = pair
        del arm
        bench.clean()
    return {
        "parameters": sum(p.numel() for p in none.model.parameters()),
        "rows": bench.bank().num_rows,
        "bank_bytes": bench.bank().num_rows * bench.bank().bytes_per_row,
        "tokens_per_step": tokens,
        "arms": found,
        "speed_by_none": {name: pair[name]["speed_by_none"] for name, pair in found.items()},
    }


def decode(bench: Bench) -> dict[str, Any]:
    """Tokens a second of greedy generation with and without the graft; and of steps as CUDA graphs."""
    sizes = bench.sizes
    models = {
        "none": bench.model().eval(),
        "graft": bench.grafted(bench.model()).eval(),
        "graft, torch path": bench.grafted(bench.model(), kernel=False).eval(),
    }
    found = {}
    for count in (1, 8):
        ids = batches(bench, 1)[0][:1].repeat(count, 1)[:, : sizes.length // 8].to(bench.device)
        for cache in ("dynamic", "static"):
            options: dict[str, Any] = {"max_new_tokens": sizes.new_tokens, "min_new_tokens": sizes.new_tokens}
            if cache == "static":
                options |= {"cache_implementation": "static", "disable_compile": True}

            def work(model: Any, ids: torch.Tensor = ids, options: dict[str, Any] = options) -> None:
                mask = torch.ones_like(ids)
                with torch.no_grad():
                    model.generate(ids, attention_mask=mask, do_sample=False, pad_token_id=0, **options)

            contenders: dict[str, Callable[[], Any]] = {
                name: lambda work=work, model=model: work(model) for name, model in models.items()
            }
            if cache == "static":
                contenders["graft, captured"] = captured(bench, models["graft"], ids)
            result = bench.contest(contenders, rounds=3)
            for facts in result.values():
                facts["tokens_per_second"] = round(count * sizes.new_tokens / facts["seconds"], 1)
                facts["speed"] = round(1 / facts["ratio"], 4)
            found[f"{count} sequences, {cache} cache"] = result
    return found


def captured(bench: Bench, model: Any, ids: torch.Tensor) -> Callable[[], Any]:
    """Greedy generation through `CapturedStep`, with one graph for all its calls."""
    new = bench.sizes.new_tokens
    cache = StaticCache(config=model.config, max_cache_len=ids.shape[1] + new)
    name = next(name for name in ("cache", "past_key_values") if name in inspect.signature(model.forward).parameters)
    held: dict[str, CapturedStep] = {}

    def work() -> None:
        cache.reset()
        with torch.no_grad():
            token = model(ids, **{name: cache}, use_cache=True, logits_to_keep=1).logits[:, -1].argmax(-1)
            if not held:
                held["step"] = CapturedStep(model, cache)
            for _ in range(new - 1):
                token = held["step"](token).argmax(-1)

    return work


def harvest(bench: Bench) -> dict[str, Any]:
    """Keys a second of the harvest beside the donor's own prefill rate over the same number of tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    sizes = bench.sizes
    folder = bench.scratch / "donor"
    bench.model().save_pretrained(folder)
    words = {"<eos>": 0, **{f"w{number}": number for number in range(1, sizes.vocab)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    keys = memgraft.mine(bench.text(), orders=(2, 3, 4), budget=sizes.harvest_keys, vocab_size=sizes.vocab)
    donor = open_donor(folder, compute_dtype="bfloat16", device=str(bench.device))
    started = bench.sync()
    bank = memgraft.harvest(
        keys,
        recipient_tokenizer=folder / "tokenizer.json",
        donor=donor,
        taps=(min(8, sizes.blocks),),
        out=bench.scratch / "harvested",
        prefix="none",
        batch_tokens=sizes.sequences * sizes.length,
        chunk_rows=16_384,
    )
    seconds = bench.sync() - started
    model = bench.model().eval()
    model.model.layers = model.model.layers[: min(8, sizes.blocks)]
    ids = batches(bench, 1)[0].to(bench.device)

    def prefill() -> None:
        with torch.no_grad():
            model.model(ids, use_cache=False)

    prefill_seconds = bench.contest({"prefill": prefill}, rounds=10, warm=2)["prefill"]["seconds"]
    key_tokens = int(sum(len(key) for key in keys))
    return {
        "keys": bank.num_rows,
        "seconds": round(seconds, 3),
        "keys_per_second": round(bank.num_rows / seconds, 1),
        "key_tokens_per_second": round(key_tokens / seconds, 1),
        "prefill_tokens_per_second": round(ids.numel() / prefill_seconds, 1),
        "key_tokens_by_prefill": round(key_tokens / seconds / (ids.numel() / prefill_seconds), 4),
        "donor": {name: value for name, value in dict(bank.manifest.donor).items() if isinstance(value, (int, float))},
    }


GROUPS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "bus": bus, "site": site, "step": step, "decode": decode, "harvest": harvest,
}  # fmt: skip


def main() -> None:
    """Run the groups that fit into the time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--groups", default=",".join(GROUPS))
    parser.add_argument("--seconds", type=float, default=420, help="no group starts after so long")
    parser.add_argument("--rows", type=float, default=0, help="rows of the bank")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--scratch", type=Path, default=None, help="where banks are written and removed")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("benches/gpu.py: no CUDA device here, nothing is measured (--quick --device cpu tries whether it runs)")
        return
    sizes = QUICK if options.quick else Sizes()
    if options.rows:
        sizes = Sizes(**{**vars(sizes), "rows": int(options.rows)})
    scratch = Path(tempfile.mkdtemp(prefix="memgraft-gpu-", dir=options.scratch))
    bench = Bench(sizes, options.device, scratch)
    results: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if bench.cuda else "cpu",
        "versions": {
            "memgraft": memgraft.__version__, "torch": torch.__version__, "transformers": transformers.__version__,
        },
        "sizes": vars(sizes),
        "quick": options.quick,
    }  # fmt: skip
    began = time.perf_counter()
    try:
        for name in options.groups.split(","):
            if time.perf_counter() - began > options.seconds:
                results[name] = {"not_run": f"{options.seconds:.0f} s had passed"}
                continue
            started = time.perf_counter()
            try:
                results[name] = GROUPS[name](bench)
            except Exception as error:
                traceback.print_exc()
                results[name] = {"error": f"{type(error).__name__}: {error}"[:2000]}
            results[name]["group_seconds"] = round(time.perf_counter() - started, 1)
            options.out.write_text(json.dumps(results, indent=1) + "\n")
            print(name, json.dumps(results[name])[:1500], file=sys.stderr, flush=True)
            bench.clean()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
