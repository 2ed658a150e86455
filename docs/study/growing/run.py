"""What keys added after training do: a trained recipient, domains it never saw, overlays that nobody trains.

    python benches/fetch_text.py --tokens 1e6                   # text of the domains: manuals, WordNet, documentation
    memgraft quickstart --out QS                                # bank, tokens, and a trained recipient (seed 0)
    python docs/study/growing/run.py prepare QS OUT             # corpora, keys and overlays: needs the donor
    python docs/study/growing/run.py train QS OUT --seeds 1,2   # further recipients: QS's recipe, text and bank
    python docs/study/growing/run.py measure QS OUT             # every recipient there is; writes OUT/results.json

What is done is kept in OUT; the same commands go on from there. ``train`` and ``measure`` need no donor and no network;
``measure`` takes --device, ``train`` a GPU where there is one.
"""

import argparse
import contextlib
import gzip
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

import memgraft
from memgraft.assets import cache_directory, default_donor
from memgraft.bank.make import truncate
from memgraft.data import MemoryBatch
from memgraft.experiments import Recipe, run_experiment
from memgraft.experiments.evaluate import spread_windows
from memgraft.experiments.windows import SEGMENTS_COLUMN, TokenWindows
from memgraft.harvesting.extend import harvest_like, mine_lacking
from memgraft.integrations.transformers import disabled, load_graft
from memgraft.quickstart import text

CONFIG = json.loads((Path(__file__).parent / "config.json").read_text())
SEQ_LEN = Recipe().seq_len


def say(words: str) -> None:
    """Progress goes to standard error."""
    sys.stderr.write(words + "\n")


def documents(patterns: list[str]) -> Iterator[str]:
    """Texts of the files that a domain's patterns name; one long file is cut at its empty lines into documents."""
    packages = cache_directory() / "benches" / "text" / "packages"
    paths = sorted({path for pattern in patterns for path in packages.glob(pattern) if not path.is_symlink()})
    if not paths:
        raise SystemExit(f"{packages}: expected files {patterns}, found none; run benches/fetch_text.py first")
    for path in paths:
        data = path.read_bytes()
        with contextlib.suppress(UnicodeDecodeError):
            words = (gzip.decompress(data) if path.suffix in (".gz", ".dz") else data).decode()
            step = CONFIG["longest_document"]
            yield from (words[start : start + step] for start in range(0, len(words), step))


def prepare_domain(name: str, patterns: list[str], base: memgraft.Bank, tokenizer: Path, out: Path) -> None:
    """Corpora, the largest overlay, its most frequent rows as smaller ones, and each with its rows shuffled."""
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "held-out.bin").exists():
        training, held_out = text.hold_out([list(documents(patterns))], CONFIG["held_out_share"])
        training = training[:: max(1, sum(map(len, training)) // CONFIG["most_characters"])]
        for part, texts in (("training", training), ("held-out", held_out)):
            text.write_documents(folder / f"{part}.jsonl", texts)
            memgraft.tokenize_folder(folder / f"{part}.jsonl", tokenizer, folder / part, eos=text.EOS)
    largest = max(CONFIG["budgets"])
    if not (folder / str(largest) / "bank.json").exists():
        corpus = memgraft.Corpus.open(folder / "training.bin")
        lacking = mine_lacking(base, corpus, largest, memory="1GiB", threads=1)
        harvest_like(
            base, lacking.keys, recipient_tokenizer=tokenizer, donor=default_donor(), out=folder / str(largest)
        )
    for budget in CONFIG["budgets"]:
        if not (folder / str(budget) / "bank.json").exists():
            truncate(folder / str(largest), budget, folder / str(budget))
        if not (folder / f"{budget}-shuffled" / "bank.json").exists():
            bank = memgraft.Bank.open(folder / str(budget))
            order = np.random.default_rng(CONFIG["shuffle_seed"]).permutation(bank.num_rows)
            memgraft.Bank.create(
                folder / f"{budget}-shuffled",
                keys=bank.keys,
                values=bank.floats(order),
                taps=bank.taps,
                dtype=bank.dtype,
                donor=bank.manifest.donor,
                tokenizer=bank.manifest.tokenizer,
            )
    say(f"{name}: {memgraft.Bank.open(folder / str(largest)).num_rows:,} new rows at most")


def train(quickstart: Path, out: Path, seeds: list[int]) -> None:
    """Recipients of further seeds with the settings of the quickstart's own."""
    plan = json.loads((quickstart / "experiment" / "plan.json").read_text())
    recipe = {**plan["settings"]["recipe"], "held_out_windows": 40, "curve_points": 1, "curve_windows": 2}
    for seed in seeds:
        run_experiment(
            memgraft.Bank.open(quickstart / "bank"),
            memgraft.Corpus.open(quickstart / "tokens" / "training.bin"),
            memgraft.Corpus.open(quickstart / "tokens" / "held-out.bin"),
            out / "recipients" / f"seed{seed}",
            tokenizer=quickstart / "tokenizer.json",
            eos_id=0,
            recipe=Recipe(**recipe),
            arms=("graft",),
            seeds=(seed,),
            steps=plan["steps"],
        )
        say(f"recipient of seed {seed}: trained")


@torch.no_grad()
def losses(model: Any, windows: TokenWindows, memory: Any, device: str) -> tuple[np.ndarray, np.ndarray]:
    """Loss in nats of each predicted token, and the match before it as (row, bank) numbers; ``memory`` None: off.

    Returns:
        float32 (W, T-1) and int64 (W, T-1): a number that differs where the row's bank or place in it differs; -1 miss.
    """
    found, matches = [], []
    chosen = spread_windows(windows, CONFIG["windows"])
    for start in range(0, len(chosen), CONFIG["batch"]):
        examples = [windows[number] for number in chosen[start : start + CONFIG["batch"]]]
        tokens = torch.stack([one["input_ids"] for one in examples])
        segments = torch.stack([one[SEGMENTS_COLUMN] for one in examples])
        if memory is None:
            with disabled(model):
                logits = model(tokens.to(device), use_cache=False).logits
            rows = torch.full_like(tokens, -1)
        else:
            batch = MemoryBatch.look_up(memory, tokens, segments)
            rows = batch.rows.long()
            logits = model(tokens.to(device), use_cache=False, memgraft=batch.stage(memory).to(device)).logits
        loss = F.cross_entropy(logits[:, :-1].float().transpose(1, 2), tokens[:, 1:].to(device), reduction="none")
        found.append(loss.cpu().numpy())
        matches.append(rows[:, :-1].numpy())
    return np.concatenate(found), np.concatenate(matches)


def measure(quickstart: Path, out: Path, device: str, domains: list[str]) -> None:
    """Every arm of every recipient that is there."""
    base = memgraft.Bank.open(quickstart / "bank")
    recipients = {0: quickstart / "experiment" / "model"}
    recipients |= {
        int(path.parent.name.removeprefix("seed")): path for path in sorted((out / "recipients").glob("seed*/model"))
    }
    held_out = {name: TokenWindows(memgraft.Corpus.open(out / name / "held-out.bin"), SEQ_LEN) for name in domains}
    held_out["old text"] = TokenWindows(memgraft.Corpus.open(quickstart / "tokens" / "held-out.bin"), SEQ_LEN)
    runs = []
    for seed, folder in sorted(recipients.items()):
        model = AutoModelForCausalLM.from_pretrained(folder / "recipient")
        load_graft(model, folder / "graft", bank=base)
        model.to(device).eval()
        for name, windows in held_out.items():
            arms = {"off": None, "base": base}
            for budget in CONFIG["budgets"]:
                if name == "old text":
                    arms |= {f"base + {one} {budget}": stack(base, out / one / str(budget)) for one in domains}
                    continue
                other = domains[(domains.index(name) + 1) % len(domains)]
                arms[f"grown {budget}"] = stack(base, out / name / str(budget))
                arms[f"shuffled {budget}"] = stack(base, out / name / f"{budget}-shuffled")
                arms[f"other {budget}"] = stack(base, out / other / str(budget))
            before, matches_before = losses(model, windows, base, device)
            for arm, memory in arms.items():
                loss, matches = (before, matches_before) if memory is base else losses(model, windows, memory, device)
                changed = matches != matches_before
                runs.append(
                    {
                        "seed": seed,
                        "text": name,
                        "arm": arm,
                        "windows": len(loss),
                        "loss": float(loss.mean(dtype=np.float64)),
                        "hits": float((matches >= 0).mean()),
                        "changed": float(changed.mean()) if memory is not None else None,
                        "loss_at_changed": float(loss[changed].mean()) if changed.any() and memory else None,
                        "base_loss_at_changed": float(before[changed].mean()) if changed.any() and memory else None,
                        "per_window": [round(float(value), 5) for value in loss.mean(1)],
                    }
                )
                say(f"seed {seed}, {name}, {arm}: {runs[-1]['loss']:.4f}")
            beside = out / "results.json.tmp"
            facts = {"config": CONFIG, "device": device, "bank": base.fingerprint, "torch": torch.__version__}
            beside.write_text(json.dumps({**facts, "runs": runs}, indent=1) + "\n")
            os.replace(beside, out / "results.json")


def stack(base: memgraft.Bank, overlay: Path) -> memgraft.Bank:
    """The base with one overlay."""
    return memgraft.Bank.open([base.path, overlay])


def main() -> None:
    """Run one step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("prepare", "train", "measure"))
    parser.add_argument("quickstart", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", default="1,2")
    parser.add_argument("--domains", default=",".join(CONFIG["domains"]))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    domains = options.domains.split(",")
    if options.step == "prepare":
        base = memgraft.Bank.open(options.quickstart / "bank")
        for name in domains:
            prepare_domain(name, CONFIG["domains"][name], base, options.quickstart / "tokenizer.json", options.out)
    elif options.step == "train":
        train(options.quickstart, options.out, [int(seed) for seed in options.seeds.split(",")])
    else:
        measure(options.quickstart, options.out, options.device, domains)


if __name__ == "__main__":
    main()
