"""The drivers of the studies, with models of a few thousand weights."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest

import memgraft
from memgraft.experiments import read_comparison
from tiny import byte_bpe, tiny_donor, tiny_text

pytestmark = pytest.mark.slow
STUDY = Path(__file__).parents[1] / "docs" / "study"
RECIPE = {
    "width": 32, "num_blocks": 2, "num_heads": 2, "ffn_width": 64, "seq_len": 24, "batch_size": 2, "table_size": 251,
    "fallback_dim": 32, "held_out_windows": 4, "curve_windows": 2, "curve_points": 1,
}  # fmt: skip


def run(monkeypatch, script, *arguments):
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    runpy.run_path(str(STUDY / script), run_name="__main__")


def test_the_sweeps_go_on_where_they_were(tmp_path, monkeypatch):
    made = tmp_path / "quickstart"
    (made / "tokens").mkdir(parents=True)
    byte_bpe([tiny_text(number) for number in range(6)], 320).save(str(tmp_path / "tokenizer.json"))
    for part, numbers in (("training", range(6)), ("held-out", range(20, 22))):
        (tmp_path / part).mkdir()
        for number in numbers:
            (tmp_path / part / f"{number}.txt").write_text(tiny_text(number, sentences=8))
        memgraft.tokenize_folder(tmp_path / part, tmp_path / "tokenizer.json", made / "tokens" / part, eos=0)
    shutil.copyfile(tmp_path / "tokenizer.json", made / "tokenizer.json")
    donor = tiny_donor(tmp_path / "donor")
    given = ["sweeps/run.py", tmp_path / "out", "--quickstart", made, "--steps", 1, "--budget", 60, "--taps", "1,2"]
    given += ["--donor", donor, "--recipe", json.dumps(RECIPE)]
    run(monkeypatch, *given, "--sweeps", "into")
    first = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(first["into"]) == {"residual-plain", "residual-none", "values-plain", "values-none"}
    losses = [point["graft"] for point in first["into"].values()]
    assert len(set(losses)) == 4
    marks = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/*/result.json")}
    run(monkeypatch, *given, "--sweeps", "into,size")
    again = json.loads((tmp_path / "out" / "results.json").read_text())
    assert again["into"] == first["into"]
    rows = [point["rows"] for point in again["size"].values()]
    assert rows == sorted(set(rows))
    assert {path: path.stat().st_mtime_ns for path in marks} == marks


def test_the_attached_study_is_prepared_and_runs(tmp_path, monkeypatch):
    source = tmp_path / "source"
    for folder in ("python", "docs"):
        (source / folder).mkdir(parents=True)
        for number in range(6):
            (source / folder / f"{number}.md").write_text(tiny_text(number + 10 * (folder == "docs")))
    recipient = tiny_donor(tmp_path / "recipient")
    material = tmp_path / "material"
    given = ["attached/prepare.py", material, "--source", source, "--recipient", recipient]
    run(monkeypatch, *given, "--budget", 60, "--tap", 2)
    text = (STUDY / "attached" / "config.yaml").read_text()
    for name, value in {
        "steps": 1,
        "held_out_windows": 4,
        "curve_windows": 2,
        "curve_points": 1,
        "seq_len": 24,
    }.items():
        (line,) = (line for line in text.splitlines() if line.strip().startswith(f"{name}:"))
        text = text.replace(line, line.partition(":")[0] + f": {value}")
    (tmp_path / "config.yaml").write_text(text.replace("[0, 1, 2]", "[0]"))
    results = read_comparison(tmp_path / "config.yaml").run()
    assert [result["arm"] for result in results["arms"]] == ["none", "graft", "shuffled", "counts"]
    assert results["arms"][0]["tokens"] == 0
    assert results["same_start"]
