"""Takes the results of a comparison into the study and writes its page from them.

python docs/study/main/page.py OUT [FOLDER]

OUT is the experiment's directory, finished or not: `memgraft compare FILE --seconds 0` writes what there is so far.
FOLDER, where `results-cpu.json` and `README.md` go, is the one of this file unless another is named.
"""

import json
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from memgraft.report.verdict import MIN_SEEDS, verdict

RAW, PAGE = "results-cpu.json", "README.md"
HYPOTHESES = {"H1": "shuffled", "H2": "counts", "H3": "own_embeddings", "H4": "mlp"}
MINUS = "\N{MINUS SIGN}"
NONE = "\N{EN DASH}"
HEAD = """# The main comparison, on a processor

**{verdict}** {first_words}

`config-cpu.yaml` after [PROTOCOL.md](../PROTOCOL.md): a recipient of width {width} with {num_blocks} blocks,
{steps:,} steps of {batch:,} tokens ({tokens:,} an arm, of the quickstart's text), loss in nats a token over
{windows:,} held-out windows of {seq_len} tokens; that of token frequencies alone is {unigram:.4f}. Arms of one seed
start from the same weights and read the same tokens in the same order (compared by fingerprint: {equal}).
Intervals are 95 %, of paired differences. Raw: `results-cpu.json`. `page.py` wrote this page from it, `check.py`
derives its figures again without memgraft.
An earlier and shorter run, of another bank: [short.md](short.md).
"""
OFF = "`memory off` is the same trained model with its memory and fallback switched off."
CURVES = """Loss on {windows} held-out windows after so many tokens, training FLOPs and seconds (of a shared processor)
of an arm; means over its seeds."""
ORDERS = "By the order of the longest match before the predicted token; means over seeds, no intervals."


def signed(number: float | None) -> str:
    """A difference with four digits."""
    return NONE if number is None else f"{number:+.4f}".replace("-", MINUS)


def plain(number: float | None) -> str:
    """A loss with four digits."""
    return NONE if number is None else f"{number:.4f}"


def words(arm: str) -> str:
    """The name of an arm on the page."""
    return "MLP" if arm == "mlp" else arm.replace("_", " ")


def table(head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A Markdown table whose first ``left`` columns are text."""
    lines = [head, ["---"] * left + ["--:"] * (len(head) - left), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def hypotheses(results: dict[str, Any]) -> str:
    """What each hypothesis of the protocol comes to."""
    by_arm = {entry["second"]: entry for entry in results["comparisons"] if entry["first"] == "graft"}
    rows = []
    for name, arm in HYPOTHESES.items():
        entry = by_arm.get(arm)
        if entry is None:
            found = "not run"
        elif entry["over"] != "seeds" or len(entry["seeds"]) < MIN_SEEDS:
            found = f"not decided: {len(entry['seeds'])} of {MIN_SEEDS} seeds"
        elif entry["interval"]["high"] < 0:
            found = "holds"
        else:
            found = "the arm wins" if entry["interval"]["low"] > 0 else "no difference shown"
        rows.append((name, f"graft minus {words(arm)} is below zero", found))
    return table(("", "hypothesis", "found"), rows, left=3)


def first_words(results: dict[str, Any]) -> str:
    """Each arm that the graft is behind, then the first difference of the protocol; empty where neither was run."""
    entries = [entry for entry in results["comparisons"] if entry["first"] == "graft"]
    behind = [f"The graft is behind {with_interval(entry)}." for entry in entries if entry["interval"]["low"] > 0]
    shuffled = [f"Graft minus {with_interval(entry)}." for entry in entries if entry["second"] == "shuffled"]
    return " ".join(behind + shuffled)


def with_interval(entry: dict[str, Any]) -> str:
    """The second arm, and the graft's difference to it."""
    low, high = (signed(entry["interval"][end]) for end in ("low", "high"))
    return f"{words(entry['second'])}: {signed(entry['difference']['overall'])} ({low} to {high} over {spread(entry)})"


def spread(entry: dict[str, Any]) -> str:
    """What an interval is over."""
    return f"{len(entry['seeds'])} seeds" if entry["over"] == "seeds" else "windows of one seed"


def differences(results: dict[str, Any]) -> str:
    """Every paired difference with its interval."""
    rows = []
    for entry in results["comparisons"]:
        low, high = (signed(entry["interval"][end]) for end in ("low", "high"))
        found = [signed(entry["difference"][part]) for part in ("overall", "hit", "miss")]
        name = f"{words(entry['first'])} minus {words(entry['second'])}"
        rows.append((name, found[0], f"{low} to {high}", spread(entry), *found[1:]))
    return table(("difference", "all tokens", "95 % interval", "over", "after a hit", "after a miss"), rows)


def losses(results: dict[str, Any]) -> str:
    """Losses of every arm and seed."""
    rows = []
    for arm in results["arms"]:
        held, off = arm["held_out"], arm.get("memory_off")
        parts = [plain(held[part]) for part in ("overall", "hit", "miss", "bits_per_byte")]
        rows.append((words(arm["arm"]), str(arm["seed"]), *parts, plain(off and off["overall"])))
    return table(("arm", "seed", "all tokens", "after a hit", "after a miss", "bits a byte", "memory off"), rows)


def curves(results: dict[str, Any]) -> str:
    """Loss on the curve's windows against tokens, the mean over an arm's seeds, and what the training took."""
    arms = by_arm(results)
    steps = [step for step, _ in results["arms"][0]["held_out_curve"]]
    per_step = results["tokens_per_arm"] // results["plan"]["steps"]
    rows = []
    for name, found in arms.items():
        points = [statistics.fmean(arm["held_out_curve"][at][1] for arm in found) for at in range(len(steps))]
        spent = statistics.fmean(arm["seconds"] for arm in found)
        flops = found[0]["costs"].get("training_flops_per_token")
        cost = NONE if flops is None else f"{flops * results['tokens_per_arm']:.2e}"
        rows.append((words(name), *map(plain, points), cost, f"{spent:,.0f}"))
    return table(("arm", *(f"{step * per_step:,}" for step in steps), "FLOPs", "seconds"), rows)


def groups(results: dict[str, Any], kind: str, name: Callable[[dict[str, Any]], str]) -> str:
    """Losses of ``none`` by group and what each other arm adds to them, means over the seeds that both have."""
    arms = by_arm(results)
    reference = {arm["seed"]: arm["held_out"][kind] for arm in arms.get("none", ())}
    others = [arm for arm in arms if arm != "none"]
    first = next(iter(arms.values()))[0]["held_out"][kind]
    rows = []
    for at, group in enumerate(first):
        if not group["tokens"]:
            continue
        cells = [name(group), f"{group['tokens']:,}", plain(mean(reference[seed][at]["loss"] for seed in reference))]
        for arm in others:
            shared = [one for one in arms[arm] if one["seed"] in reference]
            pairs = [one["held_out"][kind][at]["loss"] - reference[one["seed"]][at]["loss"] for one in shared]
            cells.append(signed(mean(pairs)))
        rows.append(cells)
    return table(("", "tokens", "none", *(f"{words(arm)} minus none" for arm in others)), rows)


def costs(results: dict[str, Any]) -> str:
    """What each arm adds to the recipient."""
    names = ("dense_parameters", "table_parameters", "flops_per_token", "bank_bytes_per_hit", "table_bytes_per_miss")
    rows = [
        (words(name), *(f"{found[0]['costs'].get(cost, 0):,}" for cost in names))
        for name, found in by_arm(results).items()
    ]
    return table(("arm", *map(words, names)), rows)


def by_arm(results: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Results of each arm, in the order they were asked for."""
    names = dict.fromkeys(arm["arm"] for arm in results["arms"])
    return {name: [arm for arm in results["arms"] if arm["arm"] == name] for name in names}


def mean(numbers: Iterable[float]) -> float | None:
    """The mean; None of no number."""
    found = list(numbers)
    return statistics.fmean(found) if found else None


def not_run(results: dict[str, Any]) -> str:
    """Arms and seeds of the comparison that are not finished."""
    return ", ".join(f"{words(job['arm'])} at seed {job['seed']}" for job in results["unfinished"])


def page(results: dict[str, Any]) -> str:
    """The whole page."""
    recipe, plan = results["settings"]["recipe"], results["plan"]
    head = HEAD.format(
        verdict=" ".join(verdict(results).sentences),
        first_words=first_words(results),
        steps=plan["steps"],
        batch=results["tokens_per_arm"] // plan["steps"],
        tokens=results["tokens_per_arm"],
        windows=plan["held_out_windows"],
        unigram=results["unigram_loss"],
        equal="yes" if results["same_start"] and results["same_order"] else "no",
        **{name: recipe[name] for name in ("width", "num_blocks", "seq_len")},
    )
    waiting, absent = not_run(results), ", ".join(map(words, results["arms_not_run"]))
    parts = [
        head,
        hypotheses(results),
        "## Paired differences\n",
        differences(results),
        f"## Losses\n\n{OFF}\n",
        losses(results),
        f"## Curves\n\n{CURVES.format(windows=plan['curve_windows'])}\n",
        curves(results),
        f"## Which tokens\n\n{ORDERS}\n",
        groups(results, "by_order", lambda group: f"order {group['order']}" if group["order"] else "no match"),
        "By how often the matched key was seen in training text, tenths of all keys.\n",
        groups(results, "by_count_decile", lambda group: f"decile {group['decile']}"),
        "## What each arm adds to the recipient\n",
        costs(results),
        "## Not run\n",
        f"- Of this comparison: {waiting or 'nothing'}.\n- Arms that exist and are no part of it: {absent}.\n",
    ]
    return "\n".join(parts)


def main() -> None:
    """Copies the results and writes the page."""
    out, folder = Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).parent
    results = json.loads((out / "results.json").read_text())
    (folder / RAW).write_text(json.dumps(results, indent=1) + "\n")
    (folder / PAGE).write_text(page(results))
    sys.stdout.write(
        f"{folder / PAGE}: {len(results['arms'])} of {len(results['arms']) + len(results['unfinished'])} trainings\n"
    )


if __name__ == "__main__":
    main()
