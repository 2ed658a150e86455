"""docs/DATAPATH.md: its Python runs as it stands, in a folder that holds the files it names."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from bank_cases import bank_maker, child_environment  # noqa: E402
from pages import Page  # noqa: E402

PAGE = Page("docs/DATAPATH.md")


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bank_maker(tmp_path)(1000, path=tmp_path / "bank")

    return PAGE.run


def test_every_python_block_is_run():
    PAGE.check_all_run("loop", "trainer", "annotate")


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_loop(run):
    namespace = run("loop")
    assert namespace["facts"].num_batches == 8
    bank, memory = namespace["bank"], namespace["memory"]
    expected = bank.floats(memory.rows[memory.hit].numpy())
    np.testing.assert_array_equal(namespace["per_position"], expected)
    assert memory.hit.any()


@pytest.mark.parametrize(
    "method", ["fork", *(pytest.param(m, marks=pytest.mark.slow) for m in ("spawn", "forkserver"))]
)
def test_loop_as_a_script(run, tmp_path, method):
    start = f'import multiprocessing; multiprocessing.set_start_method("{method}")'
    guard, rest = PAGE.blocks["loop"].split('if __name__ == "__main__":')
    (tmp_path / "script.py").write_text(
        f'{guard}if __name__ == "__main__":\n    {start}{rest.partition("up to here")[2]}'
    )
    done = subprocess.run(
        [sys.executable, "script.py"], capture_output=True, text=True, timeout=120, env=child_environment(), check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("8 "), "batches"


@pytest.mark.filterwarnings("ignore")
def test_trainer(run, tmp_path):
    pytest.importorskip("transformers")
    sys.path.append(str(Path(__file__).parent / "loader"))
    from test_trainers import make_trainer, pad

    from memgraft.data import GraftCollator

    made = bank_maker(tmp_path)(1000)
    trainer = make_trainer(run("trainer")["PrefetchingTrainer"], made, tmp_path, collator=GraftCollator(made, pad))
    trainer.bank = made
    trainer.train()
    assert all(trainer.model.staged)
    assert len(trainer.model.seen) == 32


def test_annotate(run, tmp_path):
    ids = np.random.default_rng(0).integers(1, 50, 300).astype(np.uint16)
    ids[::40] = 0
    np.save(tmp_path / "tokens.npy", ids)
    namespace = run("annotate")
    expected, _ = namespace["bank"].index.lookup(ids, eos_id=0)
    found = namespace["batch"]["memgraft"].rows
    assert found.shape == (4, 64)
    np.testing.assert_array_equal(found[0], expected[:64])
