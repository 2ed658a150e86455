"""Figures of the studies' pages come from the raw results that lie beside them."""

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

STUDY = Path(__file__).parents[1] / "docs" / "study"
FIGURE = re.compile(r"(?<![\w.,])[+-]?\d+\.\d{3,}(?![\w.]*\d)")
# Pages whose figures are entries of raw results, or differences of two arms; others give means over these.
PAGES = [STUDY / name / "README.md" for name in ("main", "sweeps", "attached", "small")]


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
