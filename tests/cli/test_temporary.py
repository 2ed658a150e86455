"""Temporary data goes to the folder that --temporary names, and nowhere else."""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from memgraft import Corpus
from memgraft.cli.app import build_app
from memgraft.mining import mine_part
from tiny import byte_bpe, tiny_text

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")
IN_CREATE, IN_MOVED_TO = 0x100, 0x80


class Watched:
    """A folder of which it is known whether anything was ever made in it, also by code that is not Python."""

    def __init__(self, path: Path) -> None:
        path.mkdir()
        self.path = path
        libc = ctypes.CDLL(None, use_errno=True)
        self.file = libc.inotify_init1(os.O_NONBLOCK)
        assert libc.inotify_add_watch(self.file, os.fsencode(path), IN_CREATE | IN_MOVED_TO) >= 0

    def touched(self) -> bool:
        try:
            return bool(os.read(self.file, 1 << 16))
        except BlockingIOError:
            return False


@pytest.fixture
def system(tmp_path, monkeypatch):
    """The system's folder for temporary files; ``tempfile`` has tried it before it is watched."""
    watched = Watched(tmp_path / "system")
    monkeypatch.setenv("TMPDIR", str(watched.path))
    monkeypatch.setattr(tempfile, "tempdir", str(watched.path))
    yield watched
    os.close(watched.file)


def run(*args):
    done = CliRunner().invoke(build_app(), [str(arg) for arg in args], catch_exceptions=False)
    assert done.exit_code == 0, (args, done.output)
    return done


@pytest.fixture
def place(tmp_path):
    """Text, its tokenizer, and a Parquet file of its tokens."""
    import pyarrow
    from pyarrow import parquet

    (tmp_path / "text").mkdir()
    tokenizer = byte_bpe([tiny_text(number) for number in range(4)], 300)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    for number in range(8):
        (tmp_path / "text" / f"{number}.txt").write_text(tiny_text(number, sentences=20))
    rows = [tokenizer.encode(tiny_text(number, sentences=200)).ids for number in range(40)]
    parquet.write_table(pyarrow.table({"input_ids": rows}), tmp_path / "tokens.parquet")
    return tmp_path


def test_the_watch_sees_what_is_made(system, place):
    assert not system.touched()
    run("coverage", mined(place), place / "text", "--tokenizer", place / "tokenizer.json")
    assert system.touched(), "without --temporary the tokens of text go to the system's folder"


def mined(place: Path) -> Path:
    run(
        "mine", place / "text", "--tokenizer", place / "tokenizer.json", "--budget", 60, "-o", place / "keys.mgk",
        "--temporary", place / "given", "--overwrite",
    )  # fmt: skip
    run("build", place / "keys.mgk", "-o", place / "index.mgi", "--overwrite")
    return place / "index.mgi"


def test_every_verb_that_reads_text_or_tables_uses_the_given_folder(system, place):
    given = ("--temporary", place / "given")
    text = (place / "text", "--tokenizer", place / "tokenizer.json")
    index = mined(place)
    run("mine", place / "tokens.parquet", "--vocab-size", 300, "-o", place / "small.mgk", "--memory", "3MB", *given)
    run("mine", *text, "--exclude", place / "tokens.parquet", "-o", place / "less.mgk", *given)
    run("mine", "--partial", *text, "-o", place / "part.mgr", *given)
    run("keys", "merge", place / "part.mgr", "-o", place / "merged.mgk", "--memory", "2MB", *given)
    run("keys", "merge", place / "part.mgr", "-o", place / "merged.mgr", *given)
    run("keys", "export", place / "keys.mgk", "-o", place / "keys.parquet")
    run("keys", "import", place / "keys.parquet", "--vocab-size", 300, "-o", place / "again.mgk", *given)
    run("keys", "union", place / "keys.mgk", place / "again.mgk", "-o", place / "both.mgk")
    run("coverage", index, *text, *given)
    run("plan", *text, "--budgets", "30,60", *given)
    run("split", *text, "--held-out", 0.3, "-o", place / "split", *given)
    run("tokenize", *text, "-o", place / "tokens")
    run("inspect", place / "text", "--tokenizer", place / "tokenizer.json", *given)
    run("verify", place / "keys.mgk")
    assert not system.touched()
    assert not any((place / "given").iterdir()), "nothing of it is left"


@pytest.mark.slow
def test_harvest_train_and_annotations_leave_the_system_s_folder_alone(system, place):
    from tiny import tiny_donor

    donor, given = tiny_donor(place / "donor"), ("--temporary", place / "given")
    tokenizer = ("--tokenizer", place / "tokenizer.json")
    mined(place)
    system.touched()
    run("harvest", place / "keys.mgk", *tokenizer, "--donor", donor, "--taps", 1, "-o", place / "bank")
    run(
        "extend",
        place / "bank",
        "--corpus",
        place / "text",
        *tokenizer,
        "--donor",
        donor,
        "--budget",
        300,
        "-o",
        place / "over",
        *given,
    )
    run("annotate", place / "bank", "--corpus", place / "text", *tokenizer, "-o", place / "rows", *given)
    run("bank", "requantise", place / "bank", "--value-dtype", "int8", "-o", place / "small")
    run("bank", "merge", place / "bank", place / "over", "-o", place / "merged")
    assert not system.touched()


def test_one_rank_s_part_needs_no_folder_of_the_system(place, monkeypatch):
    """``tempfile`` raises where it finds no folder at all."""
    corpus = Corpus.open(place / "tokens.parquet", temporary=place / "given")
    monkeypatch.setattr(tempfile, "gettempdir", lambda: pytest.fail("asked for the system's folder"))
    part = mine_part(corpus, place / "part.mgr", vocab_size=300)
    assert part.facts["shards"][0]["num_tokens"] == corpus.num_tokens
    assert np.all(corpus.tokens(0, 10) < 300)
