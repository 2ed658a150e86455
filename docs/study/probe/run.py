"""Does the probe's order predict the graft's? Nine banks of one donor and one key set: probed, harvested, trained.

    python docs/study/probe/run.py OUT --quickstart QUICKSTART [--steps 300] [--seeds 0,1,2] [--banks ...]

QUICKSTART is a finished folder of `memgraft quickstart`: its tokens and tokenizer are used, keys are mined again within
the budget. What is done is kept in OUT; the same command goes on from there. OUT/results.json is written after the
probe and after every training, with Spearman's correlation over the banks that are trained so far.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import memgraft
from memgraft.assets import default_donor
from memgraft.experiments import Recipe, run_experiment
from memgraft.harvesting import open_donor
from memgraft.probing import probe

RECIPE = {
    "width": 128,
    "num_blocks": 3,
    "num_heads": 4,
    "ffn_width": 344,
    "seq_len": 128,
    "held_out_windows": 400,
    "curve_points": 1,
    "curve_windows": 8,
}
"""The small recipient of the main comparison on a processor: 1,024 tokens a step."""
NEWLINE = "\n"
BANKS: dict[str, dict[str, Any]] = {
    "alone-8": {"tap": 8, "prefix": "none", "contexts": None},
    "bos-8": {"tap": 8, "prefix": "bos", "contexts": None},
    "newline-2": {"tap": 2, "prefix": NEWLINE, "contexts": None},
    "newline-8": {"tap": 8, "prefix": NEWLINE, "contexts": None},
    "newline-16": {"tap": 16, "prefix": NEWLINE, "contexts": None},
    "newline-24": {"tap": 24, "prefix": NEWLINE, "contexts": None},
    "alone-24": {"tap": 24, "prefix": "none", "contexts": None},
    "contexts-8": {"tap": 8, "prefix": NEWLINE, "contexts": (2, 12)},
    "contexts-24": {"tap": 24, "prefix": NEWLINE, "contexts": (2, 12)},
}


def ranks(values: list[float]) -> list[float]:
    """The rank of each value, equal ones their mean."""
    return [sum(other < value for other in values) + (values.count(value) - 1) / 2 for value in values]


def spearman(first: list[float], second: list[float]) -> float | None:
    """Spearman's rank correlation; None for fewer than three pairs."""
    if len(first) < 3:
        return None
    one, other = ranks(first), ranks(second)
    middle = (len(first) - 1) / 2
    shared = sum((a - middle) * (b - middle) for a, b in zip(one, other, strict=True))
    sizes = [sum((a - middle) ** 2 for a in each) for each in (one, other)]
    return shared / (sizes[0] * sizes[1]) ** 0.5 if min(sizes) else None


def main() -> None:
    """Probe, harvest a bank, train it, for each seed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--quickstart", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--banks", default=",".join(BANKS))
    parser.add_argument("--budget", type=int, default=30_000)
    parser.add_argument("--sample", type=int, default=3000)
    options = parser.parse_args()
    out, made = options.out, options.quickstart
    out.mkdir(parents=True, exist_ok=True)
    training, held_out = (memgraft.Corpus.open(made / "tokens" / f"{part}.bin") for part in ("training", "held-out"))
    tokenizer, path = made / "tokenizer.json", out / "keys.mgk"
    if not path.exists():
        memgraft.mine(training, orders=(2, 3, 4), budget=options.budget, vocab_size=8192).save(path)
    keys, donor = memgraft.KeySet.open(path), open_donor(default_donor())
    results = out / "results.json"
    facts: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {"probe": {}, "graft": {}}

    def write() -> None:
        trained = {name: list(losses.values()) for name, losses in facts["graft"].items() if name in facts["probe"]}
        names = list(trained)
        order = [facts["probe"][name]["loss"] for name in names]
        facts["spearman"] = spearman(order, [sum(trained[name]) / len(trained[name]) for name in names])
        beside = results.with_suffix(".new")
        beside.write_text(json.dumps(facts, indent=1) + "\n")
        beside.replace(results)

    banks = {name: BANKS[name] for name in options.banks.split(",")}
    readings = dict.fromkeys((bank["prefix"], bank["contexts"]) for bank in banks.values())
    for reading in readings:
        alike = {b["tap"]: name for name, b in banks.items() if (b["prefix"], b["contexts"]) == reading}
        if all(name in facts["probe"] for name in alike.values()):
            continue
        found = probe(
            keys,
            recipient_tokenizer=tokenizer,
            corpus=training,
            held_out=held_out,
            donors=[donor],
            taps=sorted(alike),
            prefixes=[reading[0]],
            contexts=[reading[1]],
            num_keys=options.sample,  # the same keys and hits for every reading
            seeds=1,
        )
        for one in found.candidates:
            name = alike[one.settings["tap"]]
            facts["probe"][name] = {"loss": one.loss, "keys_per_second": one.keys_per_second}
            sys.stderr.write(f"probe {name}: {one.loss:.4f}\n")
        facts["sample"] = found.sample
        facts.setdefault("baselines", {}).update({f"{each.name} ({reading})": each.loss for each in found.baselines})
        write()
    for seed in options.seeds.split(","):
        for name, bank in banks.items():
            if seed in facts["graft"].get(name, {}):
                continue
            made_bank = memgraft.harvest(
                keys,
                recipient_tokenizer=tokenizer,
                donor=donor,
                taps=(bank["tap"],),
                out=out / f"bank-{name}",
                prefix=bank["prefix"],
                contexts=bank["contexts"],
                corpus=training if bank["contexts"] else None,
            )
            result = run_experiment(
                made_bank,
                training,
                held_out,
                out / f"experiment-{name}-{options.steps}-{seed}",
                tokenizer=tokenizer,
                eos_id=0,
                recipe=Recipe(**RECIPE),
                arms=("graft",),
                seeds=(int(seed),),
                steps=options.steps,
            )
            facts["graft"].setdefault(name, {})[seed] = result["arms"][0]["held_out"]["overall"]
            write()
            sys.stderr.write(f"graft {name}, seed {seed}: {facts['graft'][name][seed]:.4f}\n")
    sys.stdout.write(f"Spearman over {len(facts['graft'])} banks: {facts['spearman']}\n")


if __name__ == "__main__":
    main()
