"""Comparisons whose answer is planted: the verdict finds rows that know the next token, and no others."""

import json
import runpy
from pathlib import Path

import pytest
from typer.testing import CliRunner

from memgraft.cli.app import build_app
from memgraft.report.verdict import verdict

pytestmark = pytest.mark.slow
SMALL = Path(__file__).parents[1] / "docs" / "study" / "small"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted") / "small"
    runpy.run_path(str(SMALL / "plant.py"))["main"](folder)
    return folder


def compared(place, name):
    result = CliRunner().invoke(build_app(), ["compare", str(place / f"{name}.yaml"), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_rows_that_know_the_next_token_win(place, tmp_path):
    results = compared(place, "knows")
    found = verdict(results)
    assert found.kind == "helps"
    assert found.sentences[0] == "The graft helps."
    first = results["comparisons"][0]
    assert (first["second"], first["over"], first["seeds"]) == ("shuffled", "seeds", [0, 1, 2])
    assert first["interval"]["high"] < -0.3
    by_arm = {entry["second"]: entry["interval"] for entry in results["comparisons"] if entry["first"] == "graft"}
    assert set(by_arm) == {"none", "engram", "shuffled", "counts", "mlp"}
    assert by_arm["mlp"]["high"] < 0
    arguments = ["report", str(place / "bank-knows"), "--experiment", str(place / "run-knows"), "--out", str(tmp_path)]
    assert CliRunner().invoke(build_app(), arguments, catch_exceptions=False).exit_code == 0
    for file in ("report.html", "report.md"):
        assert "The graft helps." in (tmp_path / file).read_text()
    assert json.loads((tmp_path / "report.json").read_text())["experiment"]["comparisons"] == results["comparisons"]


def test_rows_that_know_nothing_are_no_better_than_their_shuffle(place):
    results = compared(place, "nothing")
    assert verdict(results).kind != "helps"
    first = results["comparisons"][0]
    assert first["second"] == "shuffled"
    assert first["interval"]["low"] < 0 < first["interval"]["high"]
