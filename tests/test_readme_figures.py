"""Figures of the README's table of measurements are those of raw results of benches, range by range."""

import json
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text()
TABLE = README[README.index("| what | measured |") : README.index("One graft site makes")]
NUMBER = r"\d[\d,]*(?:\.\d+)?"
# Runs of the same machine and settings that a row speaks of: the whole table of the index, and its repetitions.
LOOKUPS = ("4567979", "6b221b1", "d7187c1")
LARGE = "9a91b3e-300M"
INDEX = (*LOOKUPS, LARGE)


def results(run):
    return json.loads((REPOSITORY / "benches" / "results" / f"amd-epyc-2-cores-{run}.json").read_text())


def goal(runs, text):
    """Values of a goal in these runs, whatever the number of keys."""
    return [entry["value"] for run in runs for entry in results(run)["goals"] if entry["text"].endswith(text)]


def timing(run, keys, name, what="ratio"):
    lookup = results(run)["results"][f"index-{keys}"]["lookup"]
    return next(entry[what] for entry in lookup["timings"] if entry["name"] == name)


def walk(run, keys):
    """The better of the two backward walks."""
    return min(timing(run, keys, name) for name in ("backward walk (KenLM)", "backward walk, prefetching"))


def longer(run, keys, reference):
    """Nanoseconds of a token against those of 3 M keys."""
    return timing(run, keys, "lookup, 1 thread", "ns") / timing(reference, "3M", "lookup, 1 thread", "ns")


def suffix_array(run):
    return results(run)["results"]["lookup"]["suffix array"][1]["ratio"]


def stacked(name, what="1 %"):
    """Times of the base alone, of the stacks whose names have ``what``."""
    found = [stack for stack in STACKS if what in stack]
    assert len(found) == 2
    return [one["ratio"] for stack in found for one in STACKS[stack]["timings"] if one["name"] == name]


def keys_per_second(run):
    return 1e9 / results(run)["results"]["harvest"]["own-tokenizer"]["timings"][0]["ns"]


STACKS = {name: found for name, found in results("0617929-stack")["results"]["stack"].items() if "," in name}
YOUNG = "stack, before all its keys are one table"
LOADER = ("3764e95", "5a5b3dc", "5be0286", "d7187c1")
OTHERS = [
    *(timing(run, "30M", "scalar automaton") for run in ("6b221b1", "d7187c1")),
    timing("d7187c1", "100M", "scalar automaton"),
    timing(LARGE, "300M", "scalar automaton"),
]
FIGURES = {
    "# ns a token": [timing(run, "3M", "lookup, 1 thread", "ns") for run in LOOKUPS],
    "the scalar automaton over the same table takes # times": [
        timing(run, "3M", "scalar automaton") for run in LOOKUPS
    ],
    "daachorse #,": goal(LOOKUPS, "3,000,000 keys: lookup over daachorse (the better of two)"),
    "a backward walk #, a Python dict": [walk(run, "3M") for run in LOOKUPS],
    "a Python dict of tuples #,": goal(("4567979", "d7187c1"), "Python: index over a dict of tuples"),
    "a suffix array (tokengrams) #;": [suffix_array(run) for run in ("4567979", "d7187c1")],
    "two threads find # times as many": goal(("6b221b1",), "3,000,000 keys: two threads over one"),
    "in some hours of this virtual machine # |": goal(("d7187c1",), "3,000,000 keys: two threads over one"),
    "keys | #, 1.6 and 1.9 times": [longer(run, "30M", run) for run in ("6b221b1", "d7187c1")],
    "1.2-1.4, # and 1.9 times": [longer("d7187c1", "100M", "d7187c1")],
    "1.2-1.4, 1.6 and # times": [longer(LARGE, "300M", "4567979")],
    "the time of 3 M; the scalar automaton takes # times": OTHERS,
    "a backward walk # (30 M)": [walk(run, "30M") for run in ("6b221b1", "d7187c1")],
    "300 M (# M of them real)": [300 - results(LARGE)["results"]["index-300M"]["keys"]["synthetic"] / 1e6],
    "| a stack of two banks, # M keys": [STACKS["1 %, text of the base"]["keys"][0] / 1e6],
    "as many | # times the base": [*stacked("stack"), *stacked("stack", "equal")],
    "until then # times with 1 %": stacked(YOUNG),
    "%, # with as many": stacked(YOUNG, "equal"),
    "# bytes a key whole": goal(INDEX, "keys: file, bytes a key"),
    "whole, # archived": goal(LOOKUPS, "keys: archive, bytes a key"),
    "built at # M keys/s": goal(INDEX, "keys: build, M keys/s"),
    "with # times its size in memory": goal(INDEX, "keys: build, peak memory over file"),
    "opened in # ms": [max(goal(INDEX, "keys: open"))],
    "verified at # GB/s": goal(INDEX, "keys: verify, 1 thread"),
    "| # of libc's memcpy": goal(("d7187c1",), "gather of 4096 B rows, share of memcpy"),
    "# times `index_select(out=)`": goal(("d7187c1",), "gather over index_select(out=)"),
    "# times fresh indexing": goal(("d7187c1",), "gather over fresh table[ids]"),
    "distinct rows # times": goal(("d7187c1",), "distinct rows: gather over a numpy memmap"),
    "a batch of text # times": goal(("d7187c1",), "a batch of text: stage over a numpy memmap"),
    "| # of the gather alone": goal(LOADER, "loader in ids mode, prefetched, share of gather alone"),
    "alone, # times shipping rows": goal(LOADER, "loader in ids mode, prefetched, over rows"),
    "(# MiB of rows a batch)": [results("d7187c1")["results"]["loader"]["mib_per_batch"]],
    "| # times single page faults": goal(("5a5b3dc", "d7187c1"), "cold: staged over single faults"),
    "read amplification #;": goal(("5a5b3dc", "d7187c1"), "cold: read amplification"),
    "| # us, in": goal(("5a5b3dc", "d7187c1", "e7e9309"), "decode step of 8 sequences"),
    "slow hours #;": goal(("53d7a2b", "35db70a-decode"), "decode step of 8 sequences"),
    "which takes # times as long": [
        entry["ratio"]
        for entry in results("35db70a-decode")["results"]["decode"]["timings"]
        if entry["name"] == "a grafted model's own step"
    ],
    "| # keys/s on two cores": [keys_per_second(f"{run}-harvest") for run in ("49c0c96", "9b82e79", "d75cb9a")],
}  # fmt: skip


def half_unit(shown):
    """Half of the last digit that is written; of whole hundreds, half of a hundred."""
    if "." in shown:
        return 0.5 * 10 ** -len(shown.partition(".")[2])
    return 50 if shown.endswith("00") else 0.5


@pytest.mark.parametrize("told", FIGURES)
def test_a_figure_is_its_runs(told):
    pattern = re.escape(told).replace(r"\#", f"({NUMBER})(?:-({NUMBER}))?")
    found = re.findall(pattern, TABLE)
    assert len(found) == 1, told
    values = FIGURES[told]
    assert values
    low, high = found[0][0], found[0][1] or found[0][0]
    for shown, value in ((low, min(values)), (high, max(values))):
        assert abs(float(shown.replace(",", "")) - value) <= half_unit(shown) + 1e-3, (told, min(values), max(values))


def test_no_figure_of_the_table_is_without_a_run():
    left = TABLE
    for told in FIGURES:
        pattern = re.escape(told).replace(r"\#", f"{NUMBER}(?:-{NUMBER})?")
        for figure in re.findall(pattern, TABLE):
            left = left.replace(figure, re.sub(NUMBER, "", figure))
    # Sizes, dates and counts of what was measured are no results.
    left = re.sub(r"\b(?:3 M|30 M|100 M|300 M|4 KiB|8 sequences|block 8|SmolLM2-135M|INT8)\b", "", left)
    assert not re.findall(r"\d+\.\d+|\d+-\d+", left), left


def test_the_figures_without_a_raw_file_stand_in_the_log():
    log = " ".join((REPOSITORY / "docs" / "LOG.md").read_text().split())
    assert "take 1.03 times as long" in README
    assert "a training step with one site takes 1.03 times the step without" in log
    assert "the graft layer is 2.2 times as fast as itself fed one row per hit" in README
    assert "Layer against itself fed one row per hit" in log
    assert "2.23 and 2.28 times in two runs with a fallback" in log
