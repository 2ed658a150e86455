import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

sys.path.append(str(Path(__file__).parents[1] / "bank"))

from test_annotation import make_corpus, naive  # noqa: E402
from test_collate import pad  # noqa: E402

from memgraft.bank.annotation import annotate, annotate_dataset  # noqa: E402
from memgraft.data import GraftCollator  # noqa: E402
from memgraft.errors import ArgumentError  # noqa: E402


def test_annotated_windows_collate_to_what_a_lookup_gives(make_bank, tmp_path, monkeypatch):
    bank, corpus = make_bank(2000), make_corpus()
    found = annotate(bank, corpus, tmp_path / "rows")
    examples = [found.example(start, start + 40 - start % 3) for start in range(0, 460, 41)]
    looked_up = GraftCollator(bank, pad, column="segments")(
        [{name: example[name] for name in ("input_ids", "segments")} for example in examples]
    )["memgraft"]

    def refuse(*arguments, **options):
        raise AssertionError("annotated examples are not looked up")

    monkeypatch.setattr(type(bank), "lookup", refuse)
    annotated = GraftCollator(bank, pad, column="segments")(examples)["memgraft"]
    for name in ("rows", "orders", "segments"):
        np.testing.assert_array_equal(getattr(annotated, name), getattr(looked_up, name))
    rows, _ = naive(bank, corpus, 0, 40)
    assert annotated.rows[0, -40:].tolist() == rows.tolist()


def test_examples_cut_after_annotation_are_refused(make_bank):
    bank = make_bank(2000)
    ids = np.random.default_rng(0).integers(0, 50, 30)
    rows, orders = bank.index.lookup(ids)
    cut = next(place for place in range(1, 30) if orders[place] > 1)
    feature = {"input_ids": ids[cut:], "memgraft_rows": rows[cut:], "memgraft_orders": orders[cut:]}
    with pytest.raises(ArgumentError, match="cut or merged after they were annotated"):
        GraftCollator(bank, pad)([feature])


def test_columns_that_were_dropped_are_missed(make_bank):
    datasets = pytest.importorskip("datasets")
    bank = make_bank(2000)
    ids = np.random.default_rng(0).integers(0, 50, 30).tolist()
    dataset = datasets.Dataset.from_dict({"input_ids": [ids]})
    looked_up = GraftCollator(bank, pad)([dataset[0]])["memgraft"]
    annotated = annotate_dataset(dataset, bank)
    kept = GraftCollator(bank, pad, annotated=True)([annotated[0]])["memgraft"]
    np.testing.assert_array_equal(kept.rows, looked_up.rows)
    dropped = annotated.remove_columns(["memgraft_rows", "memgraft_orders"])[0]
    with pytest.raises(ArgumentError, match="remove_unused_columns=False"):
        GraftCollator(bank, pad, annotated=True)([dropped])
    collator = GraftCollator(bank, pad)
    with pytest.warns(UserWarning, match="remove_unused_columns=False; until then rows are looked up"):
        found = collator([dropped])["memgraft"]
    np.testing.assert_array_equal(found.rows, looked_up.rows)
    collator([dropped])  # said once
    GraftCollator(bank, pad, annotated=False)([dropped])
