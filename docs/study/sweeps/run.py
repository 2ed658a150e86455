"""One thing changed at a time: tap, size of the bank, contexts and prefix, where the memory enters.

    python docs/study/sweeps/run.py OUT --quickstart QUICKSTART [--sweeps tap,size,contexts,into] [--steps 300]

QUICKSTART is a finished folder of `memgraft quickstart`: its tokens and tokenizer are used, keys are mined within the
budget. The recipe is that of `../main/config-cpu.yaml`. Of every point the arms graft and shuffled are trained. What is
done is kept in OUT; the same command goes on from there. OUT/results.json is written after every point.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import memgraft
from memgraft.assets import default_donor
from memgraft.bank.make import truncate
from memgraft.experiments import Recipe, read_comparison, run_experiment
from memgraft.harvesting import Donor, open_donor

CONFIG = Path(__file__).parents[1] / "main" / "config-cpu.yaml"
TAP, PREFIX = 8, "\n"
"""Of every point that says nothing else."""
SIZES = (0.1, 0.3, 1.0)
"""Shares of the budget of keys."""
CONTEXTS = ((1, 0), (1, 16), (1, 64), (4, 16), (4, 64), (16, 16), (16, 64))
"""(k, L): places in the corpus and tokens before each; L = 0 is the key alone."""


def points(taps: tuple[int, ...]) -> dict[str, dict[str, dict[str, Any]]]:
    """By sweep and name: what differs of the bank (``tap``, ``share``, ``prefix``, ``contexts``) or of the recipe."""
    return {
        "tap": {f"tap-{tap}": {"tap": tap} for tap in taps},
        "size": {f"share-{share}": {"share": share} for share in SIZES},
        "contexts": {
            "prefix-none": {"prefix": "none"},
            "prefix-bos": {"prefix": "bos"},
            **{f"contexts-{k}-{length}": {"contexts": (k, length)} for k, length in CONTEXTS if length},
        },
        "into": {
            f"{into}-{gate}": {"recipe": {"into": into, "gate": gate}}
            for into in ("residual", "values")
            for gate in ("plain", "none")
        },
    }


def bank_of(
    point: dict[str, Any], out: Path, keys: memgraft.KeySet, donor: Donor, made: Path, taps: tuple[int, ...]
) -> Any:
    """The bank of a point; one with all taps serves every point that differs in none of prefix and contexts."""
    prefix, contexts = point.get("prefix", PREFIX), point.get("contexts")
    name = "bank" if (prefix, contexts) == (PREFIX, None) else f"bank-{ascii(prefix)[1:-1].strip(chr(92))}-{contexts}"
    own = taps if name == "bank" else (TAP if TAP in taps else taps[0],)
    whole = memgraft.harvest(
        keys,
        recipient_tokenizer=made / "tokenizer.json",
        donor=donor,
        taps=own,
        out=out / name.replace(" ", ""),
        prefix=prefix,
        contexts=contexts,
        corpus=memgraft.Corpus.open(made / "tokens" / "training.bin") if contexts else None,
    )
    share = point.get("share", 1.0)
    if share == 1.0:
        return whole
    place = out / f"bank-share-{share}"
    return (
        memgraft.Bank.open(place) if place.exists() else truncate(whole.path, max(1, round(share * len(whole))), place)
    )


def main() -> None:
    """Harvest, train and note every point of the sweeps that are asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--quickstart", type=Path, required=True)
    parser.add_argument("--sweeps", default="into,tap,size,contexts")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=int, default=30_000)
    parser.add_argument("--taps", default="2,8,16,24")
    parser.add_argument("--donor", default=None)
    parser.add_argument("--recipe", type=json.loads, default={}, help="JSON: fields of the recipe that differ")
    options = parser.parse_args()
    out, made = options.out, options.quickstart
    out.mkdir(parents=True, exist_ok=True)
    taps = tuple(int(tap) for tap in options.taps.split(","))
    training, held_out = (memgraft.Corpus.open(made / "tokens" / f"{part}.bin") for part in ("training", "held-out"))
    path, results = out / "keys.mgk", out / "results.json"
    if not path.exists():
        memgraft.mine(training, orders=(2, 3, 4), budget=options.budget).save(path)
    keys, donor = memgraft.KeySet.open(path), open_donor(options.donor or default_donor())
    recipe = dataclasses.replace(read_comparison(CONFIG).recipe, **options.recipe)
    facts: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {}
    facts.setdefault("settings", {"steps": options.steps, "seed": options.seed, "recipe": recipe.to_dict()})
    for sweep in options.sweeps.split(","):
        done = facts.setdefault(sweep, {})
        for name, point in points(taps)[sweep].items():
            if name in done:
                continue
            bank = bank_of(point, out, keys, donor, made, taps)
            tap = point.get("tap", TAP if TAP in bank.taps else bank.taps[0])
            found = run_experiment(
                bank,
                training,
                held_out,
                out / f"experiment-{name}",
                tokenizer=made / "tokenizer.json",
                eos_id=training.eos_id,
                recipe=Recipe(**{**recipe.to_dict(), "tap": tap, **point.get("recipe", {})}),
                arms=("graft", "shuffled"),
                seeds=(options.seed,),
                steps=options.steps,
                keep="",
            )
            (difference,) = found["comparisons"]
            losses = {result["arm"]: result["held_out"]["overall"] for result in found["arms"]}
            gates = next(result["gates"] for result in found["arms"] if result["arm"] == "graft")
            done[name] = {
                "rows": len(bank),
                **losses,
                "graft_minus_shuffled": difference["difference"]["overall"],
                "interval_over_windows": [difference["interval"]["low"], difference["interval"]["high"]],
                "costs": found["arms"][0]["costs"],
                "gates": gates,
            }
            beside = results.with_suffix(".new")
            beside.write_text(json.dumps(facts, indent=1) + "\n")
            beside.replace(results)
            sys.stderr.write(f"{name}: graft {losses['graft']:.4f}, shuffled {losses['shuffled']:.4f}\n")


if __name__ == "__main__":
    main()
