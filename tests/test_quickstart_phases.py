"""Phases run once, again when their inputs change, and keep what resumes."""

import json

import pytest

from memgraft.errors import CorpusError
from memgraft.quickstart.phases import STATE_NAME, Phases
from memgraft.quickstart.text import (
    document_groups,
    hold_out,
    json_lines,
    source_fingerprint,
    unread,
    write_documents,
)


class Work:
    """A phase's work that counts its calls and writes one file."""

    def __init__(self, folder, *, fail=False):
        self.folder, self.fail, self.calls = folder, fail, 0

    def __call__(self):
        self.calls += 1
        (self.folder / "part").write_text(f"call {self.calls}")
        if self.fail:
            raise KeyboardInterrupt
        (self.folder / "output").write_text("whole")
        return {"calls": self.calls}


def test_a_phase_runs_once_for_the_same_inputs(tmp_path):
    work, lines = Work(tmp_path), []
    for _ in range(2):
        facts = Phases(tmp_path, lines.append).run("phase", {"a": 1}, ["output"], work)
        assert facts == {"calls": 1}
    assert work.calls == 1
    assert lines[1] == "phase: up to date"


@pytest.mark.parametrize("change", ["inputs", "output gone", "state gone", "version"])
def test_a_phase_runs_again_when_something_changed(tmp_path, change, monkeypatch):
    work = Work(tmp_path)
    Phases(tmp_path, lambda line: None).run("phase", {"a": 1}, ["output"], work)
    if change == "output gone":
        (tmp_path / "output").unlink()
    if change == "state gone":
        (tmp_path / STATE_NAME).unlink()
    if change == "version":
        monkeypatch.setattr("memgraft.quickstart.phases.__version__", "other")
    Phases(tmp_path, lambda line: None).run("phase", {"a": 2 if change == "inputs" else 1}, ["output"], work)
    assert work.calls == 2


def test_an_interrupted_phase_keeps_its_parts_for_the_same_inputs_only(tmp_path):
    broken = Work(tmp_path, fail=True)
    with pytest.raises(KeyboardInterrupt):
        Phases(tmp_path, lambda line: None).run("phase", {"a": 1}, ["output"], broken, partial=["part"])
    assert json.loads((tmp_path / STATE_NAME).read_text())["phase"]["done"] is False

    seen = []
    Phases(tmp_path, lambda line: None).run(
        "phase", {"a": 1}, [], lambda: seen.append((tmp_path / "part").exists()) or {}, partial=["part"]
    )
    Phases(tmp_path, lambda line: None).run(
        "phase", {"a": 2}, [], lambda: seen.append((tmp_path / "part").exists()) or {}, partial=["part"]
    )
    assert seen == [True, False]


def test_finished_phases_survive_a_later_interruption(tmp_path):
    phases, first, broken = Phases(tmp_path, lambda line: None), Work(tmp_path), Work(tmp_path, fail=True)
    phases.run("first", {}, ["output"], first)
    with pytest.raises(KeyboardInterrupt):
        phases.run("second", {}, [], broken)
    Phases(tmp_path, lambda line: None).run("first", {}, ["output"], first)
    assert first.calls == 1


def test_every_kind_of_text_is_held_out(tmp_path):
    (tmp_path / "plays").mkdir()
    for number in range(4):
        (tmp_path / "plays" / f"{number}.txt").write_text(f"play {number}")
    lines = [json.dumps({"text": f"lead {number}"}) for number in range(100)]
    (tmp_path / "leads.jsonl").write_text("\n".join(lines))
    (tmp_path / ".hidden.txt").write_text("not this")
    training, held_out = hold_out(document_groups(tmp_path), 0.05)
    assert len([text for text in held_out if text.startswith("lead")]) == 5
    assert len([text for text in held_out if text.startswith("play")]) == 1
    assert len(training) + len(held_out) == 104
    assert not set(training) & set(held_out)


def test_equal_documents_never_stand_on_both_sides():
    groups = [["a", "b", "a", " ", "c", "d"], ["a", "x", "y", "x"]]
    training, held_out = hold_out(groups, 0.4)
    assert sorted(training + held_out) == ["a", "b", "c", "d", "x", "y"]


def test_the_choice_does_not_depend_on_the_order():
    texts = [f"text {number}" for number in range(50)]
    assert sorted(hold_out([texts], 0.2)[1]) == sorted(hold_out([texts[::-1]], 0.2)[1])


def test_folders_of_one_document_each_are_held_out_together():
    training, held_out = hold_out([[f"text {number}"] for number in range(40)], 0.05)
    assert (len(training), len(held_out)) == (38, 2)


def test_files_that_are_not_read_are_named(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    assert unread(tmp_path) is None
    (tmp_path / "code").mkdir()
    for number in range(9):
        (tmp_path / "code" / f"{number}.parquet").write_bytes(b"")
    assert unread(tmp_path).startswith("left out, since their names are not those of text: code/0.parquet, code/1")
    assert unread(tmp_path).endswith("code/7.parquet and 1 more")


def test_records_survive_any_line_separator(tmp_path):
    documents = ["one\u2028two\x85three", "four\r\nfive"]
    write_documents(tmp_path / "d.jsonl", documents)
    assert [record["text"] for record in json_lines(tmp_path / "d.jsonl")] == documents


def test_a_change_in_a_linked_folder_is_another_source(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.txt").write_text("one")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "link").symlink_to(tmp_path / "elsewhere")
    before = source_fingerprint(tmp_path / "text")
    (tmp_path / "text" / "unread.py").write_text("no text of the corpus")
    assert source_fingerprint(tmp_path / "text") == before
    (tmp_path / "elsewhere" / "a.txt").write_text("two")
    assert source_fingerprint(tmp_path / "text") != before


def test_too_little_text_is_an_error(tmp_path):
    with pytest.raises(CorpusError, match="1 distinct documents"):
        hold_out([["a", "a"]], 0.05)
    with pytest.raises(CorpusError, match="found none"):
        list(document_groups(tmp_path))
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(CorpusError, match=r"latin\.txt: expected UTF-8, found byte 0xe9 at offset 3"):
        list(document_groups(tmp_path))
