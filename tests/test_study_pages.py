"""Figures of the studies' pages come from the raw results that lie beside them."""

import itertools
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from memgraft.report.verdict import verdict

STUDY = Path(__file__).parents[1] / "docs" / "study"
MAIN = STUDY / "main"
FIGURE = re.compile(r"(?<![\w.,])[+-]?\d+\.\d{3,}(?![\w.]*\d)")
# Pages whose figures are entries of raw results, or differences of two arms; others give means over these.
PAGES = [STUDY / name for name in ("main/short.md", "sweeps/README.md", "attached/README.md", "small/README.md")]


def numbers(facts):
    """Every number of a raw result."""
    if isinstance(facts, dict):
        return [number for value in facts.values() for number in numbers(value)]
    if isinstance(facts, list):
        return [number for value in facts for number in numbers(value)]
    return [float(facts)] if isinstance(facts, (int, float)) and not isinstance(facts, bool) else []


def losses(facts):
    """Pairs of arms of one seed, whose differences pages give."""
    for first, second in itertools.permutations(facts.get("arms", ()) if isinstance(facts, dict) else (), 2):
        if isinstance(first, dict) and first.get("seed") == second.get("seed"):
            for part in ("overall", "hit", "miss"):
                if first["held_out"].get(part) is not None and second["held_out"].get(part) is not None:
                    yield first["held_out"][part] - second["held_out"][part]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_every_figure_of_a_page_is_in_its_raw_results(page):
    raw = [json.loads(path.read_text()) for path in page.parent.glob("*.json")]
    known = [number for facts in raw for number in (*numbers(facts), *losses(facts))]
    text = page.read_text().replace("\N{MINUS SIGN}", "-")
    figures = FIGURE.findall(text)
    assert figures or not raw
    for figure in figures:
        digits = len(figure.partition(".")[2])
        value = float(figure)
        assert any(abs(abs(value) - abs(number)) <= 0.51 * 10**-digits for number in known), (page, figure)


@pytest.mark.parametrize("raw", ["results-cpu.json", "results-cpu-200-steps.json"])
def test_the_main_page_is_written_from_its_results_and_derived_again(raw, tmp_path):
    results = json.loads((MAIN / raw).read_text())
    (tmp_path / "results.json").write_text(json.dumps(results))
    subprocess.run([sys.executable, MAIN / "page.py", tmp_path, tmp_path], capture_output=True, check=True)
    page = (tmp_path / "README.md").read_text()
    if raw == "results-cpu.json":
        assert page == (MAIN / "README.md").read_text()
    assert json.loads((tmp_path / "results-cpu.json").read_text()) == results
    assert page.splitlines()[2].startswith(f"**{verdict(results).sentences[0]}")
    for job in results["unfinished"]:
        assert f"{job['arm'].replace('_', ' ')} at seed {job['seed']}".replace("mlp", "MLP") in page
    check = [sys.executable, MAIN / "check.py", tmp_path / "results-cpu.json"]
    run = subprocess.run([*check, tmp_path / "README.md"], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    first = results["comparisons"][0]["difference"]["overall"]
    shown = f"{first:+.4f}".replace("-", "\N{MINUS SIGN}")
    (tmp_path / "wrong.md").write_text(page.replace(f"| {shown} |", f"| {shown[:-1]}x |"))
    wrong = subprocess.run([*check, tmp_path / "wrong.md"], capture_output=True, text=True, check=False)
    assert "the report does not say" in wrong.stderr


@pytest.mark.parametrize(
    ("arm", "low", "high", "found"),
    [
        ("shuffled", -0.2, -0.1, "holds"),
        ("counts", -0.1, 0.1, "no difference shown"),
        ("own_embeddings", 0.1, 0.2, "the arm wins"),
        ("mlp", None, None, "not run"),
    ],
)
def test_the_page_decides_hypotheses_by_their_intervals(arm, low, high, found):
    page = runpy.run_path(str(MAIN / "page.py"))
    ended = [] if low is None else [{"first": "graft", "second": arm, "seeds": [0, 1, 2], "over": "seeds"}]
    told = page["hypotheses"]({"comparisons": [entry | {"interval": {"low": low, "high": high}} for entry in ended]})
    name = "MLP" if arm == "mlp" else arm.replace("_", " ")
    assert f"| graft minus {name} is below zero | {found} |" in told
    for entry in ended:
        entry |= {"seeds": [0, 1], "interval": {"low": low, "high": high}}
        assert "not decided: 2 of 3 seeds" in page["hypotheses"]({"comparisons": [entry]})


def test_the_main_study_is_derived_again():
    results, report = (STUDY / "main" / name for name in ("results-cpu-200-steps.json", "report.md"))
    run = subprocess.run(
        [sys.executable, STUDY / "main" / "check.py", results, report], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "graft minus shuffled, high end" in run.stdout
    wrong = json.loads(results.read_text())
    wrong["arms"][0]["held_out"]["overall"] += 0.001
    copy = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; sys.argv = ['check', '/dev/stdin']; exec(open({str(STUDY / 'main' / 'check.py')!r}).read())",
        ],
        input=json.dumps(wrong),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "differs" in copy.stderr


def test_the_figures_of_the_readme_are_those_of_the_main_study():
    readme = (STUDY.parents[1] / "README.md").read_text()
    told = readme[readme.index("**What is known of the method so far**") : readme.index("## Where things are")]
    compared = json.loads((MAIN / "results-cpu.json").read_text())["comparisons"]
    known = {entry["second"]: entry for entry in compared if entry["first"] == "graft"}
    figures = {"shuffled": "0.207", "engram": "0.051", "mlp": "0.215", "trainable": "0.044", "counts": "0.137"}
    assert sorted(FIGURE.findall(told)) == sorted(figures.values())
    for arm, figure in figures.items():
        entry = known[arm]
        assert f"{abs(entry['interval']['mean']):.3f}" == figure, arm
        # "in all seeds": three of them, with an interval on one side of zero.
        assert entry["seeds"] == [0, 1, 2]
        assert (entry["interval"]["low"] > 0) == (arm == "counts")
        assert (entry["interval"]["high"] < 0) == (arm != "counts")
