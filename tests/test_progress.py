"""One form of progress: a function, True for bars, or nothing."""

import numpy as np
import pytest

import memgraft
from memgraft.corpus import CorpusWriter
from memgraft.errors import ArgumentError
from memgraft.progress import callback


def test_true_shows_a_bar_for_each_stage(capsys):
    pytest.importorskip("tqdm")
    show = callback(True)
    for phase in ("read", "count"):
        for done in (0, 3, 5):
            show(phase, done, 5)
    shown = capsys.readouterr().err
    assert "read: 100%" in shown
    assert "count: 100%" in shown


def test_a_function_stays_itself_and_other_things_are_refused():
    def tell(phase, done, total):
        pass

    assert callback(tell) is tell
    assert callback(None) is callback(False) is None
    with pytest.raises(ArgumentError, match="progress: expected True, False or a function"):
        callback("yes")


def test_long_work_takes_true(tmp_path, capsys):
    pytest.importorskip("tqdm")
    with CorpusWriter(tmp_path / "corpus", vocab_size=9) as writer:
        writer.add(np.array([1, 2, 1, 2, 1, 2], np.uint32))
        corpus = memgraft.Corpus.open(writer.finish())
    keys = memgraft.mine(corpus, (2,), progress=True)
    memgraft.coverage(memgraft.NgramIndex.build(keys), corpus, progress=True)
    assert "coverage: 100%" in capsys.readouterr().err
    with pytest.raises(ArgumentError, match="progress"):
        memgraft.mine(corpus, (2,), progress=3)
