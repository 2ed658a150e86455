import json

import numpy as np
import pytest
from typer.testing import CliRunner

from memgraft import Corpus
from memgraft.bank.annotation import Annotation
from memgraft.cli.app import build_app

RUNNER = CliRunner()


def run(*arguments):
    return RUNNER.invoke(build_app(), [str(argument) for argument in arguments])


def test_bench_datapath_tells_what_there_is_and_what_is_needed(make_bank):
    bank = make_bank(500)
    options = ["bench", "datapath", "--bank", bank.path, "--batch", 2000, "--hits", 0.5, "--json"]
    result = run(*options, "--tokens-per-second", 1000, "--evict")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["bytes_per_row"] == 96
    assert 0.4 < facts["hit_share"] < 0.6
    assert 0 < facts["unique_share"] < 1
    assert facts["warm_margin"] > 1
    needed = 1000 * facts["hit_share"] * facts["unique_share"]
    assert facts["needed_rows_per_second"] == round(needed)
    assert facts["cold_reader"] == "pread"
    assert "rows in memory come fast enough" in facts["verdict"]
    slow = run(*options, "--tokens-per-second", 1e15)
    assert slow.exit_code == 1
    assert "needed" in slow.stderr
    assert "hold the bank resident" in slow.stderr
    assert run(*options, "--hits", 2).exit_code == 2
    assert run(*options, "--cold-reader", "aio").exit_code == 2
    assert json.loads(run(*options, "--cold-reader", "io_uring").stdout)["cold_reader"].split(":")[0] in (
        "io_uring",
        "pread",
    )
    assert "warm rows per second" in run(*options[:-1], "--resident").stdout


def test_annotate_writes_beside_a_corpus(make_bank, tmp_path):
    bank = make_bank(2000)
    ids = np.random.default_rng(0).integers(0, 50, 400).astype(np.uint16)
    ids[::50] = 7
    path = tmp_path / "tokens.bin"
    ids.tofile(path)
    out = tmp_path / "rows"
    options = ["annotate", bank.path, "--corpus", path, "--format", "nanogpt", "--eos-id", 7, "--out", out, "--json"]
    result = run(*options)
    assert result.exit_code == 0, result.output
    opened = Corpus.open(path, format="nanogpt", eos_id=7)
    found = Annotation.open(out, bank, opened)
    np.testing.assert_array_equal(found.rows, bank.index.lookup(ids, eos_id=7)[0])
    assert json.loads(result.stdout)["coverage"] == (found.rows >= 0).mean()
    again = run(*options)
    assert again.exit_code == 2
    assert "exists" in again.stderr
    shown = json.loads(run("inspect", out, "--json").stdout)
    assert (shown["kind"], shown["num_hits"]) == ("annotation", int((found.rows >= 0).sum()))
    assert json.loads(run("verify", out, "--json").stdout)["verified"][0]["fingerprint"] == bank.fingerprint
    damaged = np.load(out / "orders.npy", mmap_mode="r+")
    damaged[3] = 0
    damaged.flush()
    broken = run("verify", out)
    assert broken.exit_code == 1
    assert "and order 0; annotate again" in broken.stderr
    assert run("annotate", bank.path, "--out", out).exit_code == 2


@pytest.mark.filterwarnings("ignore")
def test_annotate_adds_columns_to_a_dataset(make_bank, tmp_path):
    datasets = pytest.importorskip("datasets")
    bank = make_bank(2000)
    datasets.Dataset.from_dict({"input_ids": [[1, 2, 3], [4, 5]]}).save_to_disk(str(tmp_path / "plain"))
    result = run("annotate", bank.path, "--dataset", tmp_path / "plain", "--out", tmp_path / "rows")
    assert result.exit_code == 0, result.output
    loaded = datasets.load_from_disk(str(tmp_path / "rows"))
    assert loaded[0]["memgraft_rows"] == bank.index.lookup(np.array([1, 2, 3]))[0].tolist()
