"""Tables of ratios, and what was asked for beside what was reached."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Timings = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Goal:
    """One figure that was asked for."""

    text: str
    value: float
    wanted: float
    at_least: bool = True
    unit: str = "x"

    @property
    def met(self) -> bool:
        return self.value >= self.wanted if self.at_least else self.value <= self.wanted


def named(timings: Timings, name: str) -> dict[str, Any] | None:
    return next((one for one in timings if one["name"] == name), None)


def over(timings: Timings, slow: str, fast: str) -> float | None:
    """How many times the time of ``fast`` that of ``slow`` is: the median over the rounds both ran in."""
    a, b = named(timings, slow), named(timings, fast)
    if a is None or b is None:
        return None
    ratios = sorted(x / y for x, y in zip(a["rounds"], b["rounds"], strict=True))
    middle = len(ratios) // 2
    return ratios[middle] if len(ratios) % 2 else (ratios[middle - 1] + ratios[middle]) / 2


def goals(results: dict[str, Any]) -> list[Goal]:
    """Everything that was asked for and measured in this run."""
    found: list[Goal] = []

    def add(text: str, value: float | None, wanted: float, *, at_least: bool = True, unit: str = "x") -> None:
        if value is not None:
            found.append(Goal(text=text, value=value, wanted=wanted, at_least=at_least, unit=unit))

    index = {name: one for name, one in results.items() if name.startswith("index-")}
    for one in index.values():
        size = f"{one['lookup']['num_keys']:,} keys"
        timings = one["lookup"]["timings"]
        fast = "lookup, 1 thread"
        add(f"{size}: lookup over the scalar automaton", over(timings, "scalar automaton", fast), 4)
        daachorse = [over(timings, name, fast) for name in ("daachorse", "daachorse, profiled layout")]
        if best := [ratio for ratio in daachorse if ratio is not None]:
            add(f"{size}: lookup over daachorse (the better of two)", min(best), 3)
        add(f"{size}: two threads over one", over(timings, fast, "lookup, 2 threads"), 1.8)
        build = one["build"]
        add(f"{size}: file, bytes a key", build["file_bytes_per_key"], 28, at_least=False, unit=" B")
        add(f"{size}: archive, bytes a key", build["archive_bytes_per_key"], 4, at_least=False, unit=" B")
        add(f"{size}: build, M keys/s", build["keys_per_second"] / 1e6, 2, unit=" M/s")
        add(f"{size}: build, peak memory over file", build["peak_over_file"], 2, at_least=False)
        add(f"{size}: open", one["open"]["open_ms"], 1, at_least=False, unit=" ms")
        add(f"{size}: verify, 1 thread", one["open"]["verify_gb_per_second"]["1"], 2, unit=" GB/s")
    by_size = sorted(index.values(), key=lambda one: one["lookup"]["num_keys"])
    if len(by_size) > 1:
        small, large = (named(one["lookup"]["timings"], "lookup, 1 thread") for one in (by_size[0], by_size[-1]))
        text = f"{by_size[-1]['lookup']['num_keys']:,} over {by_size[0]['lookup']['num_keys']:,} keys, ns a token"
        assert small is not None
        assert large is not None
        add(text, large["ns"] / small["ns"], 3, at_least=False)
    if one := results.get("lookup"):
        add(
            "Python: index over a dict of tuples", over(one["timings"], "dict of tuples", "index.lookup, 1 thread"), 100
        )
    for name, one in results.get("stack", {}).items():
        if isinstance(one, dict):
            asked = 1.15 if name.startswith("1 %") else 2
            add(
                f"stack, {name}: over the base alone",
                over(one["timings"], "stack", "base alone"),
                asked,
                at_least=False,
            )
    if one := results.get("gather"):
        for row_bytes, wanted in (("4096", 0.55), ("16384", 0.75)):
            timings = one["rows"][row_bytes]["uniform"]
            add(f"gather of {row_bytes} B rows, share of memcpy", over(timings, "memcpy", "gather"), wanted)
        timings = one["rows"]["4096"]["uniform"]
        add("gather over index_select(out=)", over(timings, "torch.index_select(out=)", "gather"), 1)
        add("gather over fresh table[ids]", over(timings, "torch table[ids], fresh", "gather"), 4)
        add("distinct rows: gather over a numpy memmap", over(timings, "numpy memmap[rows]", "gather"), 4)
        timings = one["rows"]["4096"]["batch"]
        plain = "numpy memmap[rows of all hits]"
        add("a batch of text: stage over a numpy memmap", over(timings, plain, "stage a batch"), 4)
        dedup = named(one["dedup"], "dedup + inverse")
        add("dedup + inverse", dedup and 1e3 / dedup["ns"], 100, unit=" M ids/s")
    if one := results.get("loader"):
        for ships, how in (("loader ships ids, prefetch", "prefetched"), ("loader ships ids, 1 worker", "in the loop")):
            timings = one["timings"]
            add(f"loader in ids mode, {how}, share of gather alone", over(timings, "gather alone", ships), 0.75)
            add(f"loader in ids mode, {how}, over rows", over(timings, "loader ships rows, 1 worker", ships), 5)
        add("trainer's wait, share of the step", 100 * one["trainer"]["wait_share"], 2, at_least=False, unit=" %")
    if one := results.get("cold"):
        staged = "stage, 2 threads"
        add("cold: staged over single faults", over(one["timings"], "page faults, MADV_RANDOM", staged), 4)
        add("cold: read amplification", one["read_amplification"][staged], 1.1, at_least=False)
    if one := results.get("decode"):
        step = named(one["timings"], "advance + stage")
        add("decode step of 8 sequences", step and step["ns"] / 1e3, 50, at_least=False, unit=" us")
    for name in ("own-tokenizer", "other-tokenizer"):
        one = results.get("harvest", {}).get(name)
        if one is None:
            continue
        faster = over(one["timings"], "every key alone, batches alike in length", "each prefix once")
        allowed = one["tokens_to_a_prefix_timed"]
        of_all = f"{one['tokens_to_a_prefix']:.2f} in all keys"
        text = f"harvest, {name}: speed over keys alone, share of {allowed:.2f} donor tokens to a prefix ({of_all})"
        add(text, faster and faster / allowed, 0.8)
        add(f"harvest, {name}: padding", 100 * one["padding_share"], 5, at_least=False, unit=" %")
        share = 100 * one["text_and_writing_share"]
        add(f"harvest, {name}: text and writing", share, 5, at_least=False, unit=" %")
        add(f"harvest, {name}: two processes over one", one["processes"]["two_over_one"], 1.7)
    return found


def contests(results: Any, path: str = "") -> list[tuple[str, Timings]]:
    """All timing lists in the results, with where they stand."""
    if isinstance(results, list) and results and isinstance(results[0], dict) and "rounds" in results[0]:
        return [(path.removeprefix("/"), results)]
    if isinstance(results, dict):
        return [found for name, value in results.items() for found in contests(value, f"{path}/{name}")]
    return []


def show(results: dict[str, Any], write: Callable[[str], Any], *, judge: bool) -> None:
    """Print one table: contests first, then, if asked to ``judge``, the goals."""
    for path, timings in contests(results):
        write(f"\n{path}")
        width = max(len(one["name"]) for one in timings)
        for one in timings:
            low, high = min(one["rounds"]), max(one["rounds"])
            write(
                f"  {one['name']:<{width}}  {one['ns']:>12,.1f} ns  {one['ratio']:>8.2f}x   ({low:,.1f} to {high:,.1f})"
            )
    if not judge:
        write("\na quick run: sizes are too small to say whether a goal is met")
        return
    write("\nasked for, and reached in this run")
    listed = goals(results)
    width = max((len(goal.text) for goal in listed), default=0)
    for goal in listed:
        sign = ">=" if goal.at_least else "<="
        verdict = "met" if goal.met else "NOT met"
        write(f"  {goal.text:<{width}}  {goal.value:>9.2f}{goal.unit}  {sign} {goal.wanted:g}{goal.unit}  {verdict}")
