"""Graft minus shuffled with and without a prefix: the quickstart's text, donor and recipe, fewer keys and steps.

    python docs/study/prefix/run.py OUT [--steps 120] [--seeds 0,1,2] [--prefixes none,auto]

What is done is kept in OUT; the same command goes on from there. OUT/results-STEPS-SEEDS.json is written after every
pair of arms. A folder OUT that holds tokens, tokenizer, keys and both banks needs no donor and no network; it trains on
a GPU where there is one.
"""

import argparse
import json
import sys
from pathlib import Path

import memgraft
from memgraft.assets import default_corpus, default_donor
from memgraft.experiments import Recipe, run_experiment
from memgraft.experiments.train import device_name
from memgraft.quickstart import text

BUDGET = 30_000
RECIPE = {"held_out_windows": 120, "curve_points": 1, "curve_windows": 8}


def material(out: Path) -> None:
    """Split, tokenizer, tokens and keys as `memgraft quickstart` makes them."""
    if (out / "keys.mgk").exists():
        return
    (out / "tokens").mkdir(parents=True, exist_ok=True)
    training, held_out = text.hold_out(text.document_groups(default_corpus()), 0.05)
    text.write_documents(out / "training.jsonl", training)
    text.write_documents(out / "held-out.jsonl", held_out)
    text.train_tokenizer(out / "training.jsonl", out / "tokenizer.json", vocab_size=8192)
    for part in ("training", "held-out"):
        memgraft.tokenize_folder(out / f"{part}.jsonl", out / "tokenizer.json", out / "tokens" / part, eos=text.EOS)
    corpus = memgraft.Corpus.open(out / "tokens" / "training.bin")
    memgraft.mine(corpus, orders=(2, 3, 4), budget=BUDGET, vocab_size=8192).save(out / "keys.mgk")


def main() -> None:
    """Harvest a bank per prefix, train both arms per seed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--prefixes", default="none,auto")
    options = parser.parse_args()
    out = options.out
    material(out)
    banks = {}
    for prefix in options.prefixes.split(","):
        folder = out / f"bank-{prefix}"
        banks[prefix] = (
            memgraft.Bank.open(folder)
            if (folder / "bank.json").exists()
            else memgraft.harvest(
                memgraft.KeySet.open(out / "keys.mgk"),
                recipient_tokenizer=out / "tokenizer.json",
                donor=default_donor(),
                taps=(8,),
                out=folder,
                prefix=prefix,
            )
        )
        sys.stderr.write(f"{prefix}: {dict(banks[prefix].manifest.donor)}\n")
    rows = []
    for seed in map(int, options.seeds.split(",")):
        for prefix, bank in banks.items():
            result = run_experiment(
                bank,
                memgraft.Corpus.open(out / "tokens" / "training.bin"),
                memgraft.Corpus.open(out / "tokens" / "held-out.bin"),
                out / f"experiment-{prefix}-{options.steps}-{seed}",
                tokenizer=out / "tokenizer.json",
                eos_id=0,
                recipe=Recipe(**RECIPE),
                arms=("graft", "shuffled"),
                seeds=(seed,),
                steps=options.steps,
            )
            losses = {arm["arm"]: arm["held_out"] for arm in result["arms"]}
            rows.append(
                {
                    "prefix": prefix,
                    "seed": seed,
                    "steps": options.steps,
                    "device": device_name(),
                    "held_out": {
                        name: {k: v for k, v in loss.items() if k != "per_window"} for name, loss in losses.items()
                    },
                }
            )
            sys.stderr.write(f"{prefix} {seed}: { {name: loss['overall'] for name, loss in losses.items()} }\n")
            facts = {name: dict(bank.manifest.donor) for name, bank in banks.items()}
            (out / f"results-{options.steps}-{options.seeds}.json").write_text(
                json.dumps({"donor": facts, "runs": rows}, indent=1) + "\n"
            )


if __name__ == "__main__":
    main()
