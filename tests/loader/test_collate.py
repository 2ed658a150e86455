import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.utils.data import DataLoader  # noqa: E402

from memgraft.data import GraftCollator, MemoryBatch  # noqa: E402
from memgraft.errors import ArgumentError, ConfigError  # noqa: E402


class Examples(torch.utils.data.Dataset):
    def __init__(self, num_examples=12, length=20):
        ids = np.random.default_rng(0).integers(0, 50, (num_examples, length))
        self.examples = [{"input_ids": torch.from_numpy(row), "number": place} for place, row in enumerate(ids)]

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, place):
        return self.examples[place]


def pad(features):
    """A padding collator in the style of transformers, on the left."""
    width = max(len(feature["input_ids"]) for feature in features)
    ids = torch.full((len(features), width), -7)
    mask = torch.zeros(len(features), width, dtype=torch.int64)
    for row, feature in enumerate(features):
        own = torch.as_tensor(feature["input_ids"])
        ids[row, width - len(own) :] = own
        mask[row, width - len(own) :] = 1
    return {"input_ids": ids, "attention_mask": mask, "left": sorted(set().union(*features))}


def test_adds_memory_and_keeps_the_rest(make_bank):
    bank = make_bank(300)
    batch = GraftCollator(bank)([Examples()[0], Examples()[1]])
    assert batch["number"].tolist() == [0, 1]
    rows, orders = bank.index.lookup(batch["input_ids"].numpy())
    np.testing.assert_array_equal(batch["memgraft"].rows, rows)
    np.testing.assert_array_equal(batch["memgraft"].orders, orders)
    assert (rows >= 0).any()
    assert (rows < 0).any() or (orders == 1).any()


@pytest.mark.parametrize("mode", ["handle", "ids"])
@pytest.mark.parametrize(
    ("workers", "method"), [(0, None), (2, "fork"), pytest.param(1, "spawn", marks=pytest.mark.slow)]
)
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_workers_give_what_the_main_process_gives(make_bank, mode, workers, method):
    bank = make_bank(300)
    bank.stage(rows=np.arange(300), threads=2)
    loader = DataLoader(
        Examples(),
        batch_size=4,
        num_workers=workers,
        multiprocessing_context=method,
        collate_fn=GraftCollator(bank, mode=mode),
        timeout=30 if workers else 0,
    )
    batches = list(loader)
    assert len(batches) == 3
    for batch in batches:
        assert isinstance(batch["memgraft"], MemoryBatch if mode == "handle" else torch.Tensor)
        rows, _ = bank.index.lookup(batch["input_ids"].numpy())
        np.testing.assert_array_equal(MemoryBatch.wrap(batch["memgraft"]).rows, rows)


def test_packed_is_separate_and_padded_is_unpadded(make_bank):
    bank = make_bank(2000)
    ids = np.random.default_rng(0).integers(0, 50, 30)
    parts = [ids[:11], ids[11:13], ids[13:]]
    alone = [bank.index.lookup(part)[0] for part in parts]
    packed = GraftCollator(
        bank,
        lambda _: {
            "input_ids": torch.from_numpy(ids)[None],
            "position_ids": torch.from_numpy(np.concatenate([np.arange(len(part)) for part in parts]))[None],
        },
    )([])
    np.testing.assert_array_equal(packed["memgraft"].rows[0], np.concatenate(alone))
    whole = bank.index.lookup(ids)[0]
    assert (whole != np.concatenate(alone)).any(), "the case tells packed from whole"
    padded = GraftCollator(bank, pad)([{"input_ids": part} for part in parts])
    for row, expected in zip(padded["memgraft"].rows.numpy(), alone, strict=True):
        assert (row[: 17 - len(expected)] == -1).all()
        np.testing.assert_array_equal(row[17 - len(expected) :], expected)


def test_columns_of_segments_are_taken_out_and_used(make_bank):
    bank = make_bank(2000)
    ids = np.random.default_rng(0).integers(0, 50, 20)
    features = [{"input_ids": ids, "documents": [0] * 9 + [1] * 11}, {"input_ids": ids[:5], "documents": [3] * 5}]
    batch = GraftCollator(bank, pad, column="documents")(features)
    assert batch["left"] == ["input_ids"]
    expected = np.concatenate([bank.index.lookup(ids[:9])[0], bank.index.lookup(ids[9:])[0]])
    np.testing.assert_array_equal(batch["memgraft"].rows[0], expected)
    assert "documents" in features[0], "the examples are not changed"
    with pytest.raises(ArgumentError, match="remove_unused_columns=False"):
        GraftCollator(bank, pad, column="documents")([{"input_ids": ids}])
    with pytest.raises(ArgumentError, match="some examples"):
        GraftCollator(bank, pad, column="documents")([features[0], {"input_ids": ids}])
    with pytest.raises(ArgumentError, match="one per token"):
        GraftCollator(bank, pad, column="documents")([{"input_ids": ids, "documents": [0]}])


def test_rows_found_before_are_used(make_bank):
    bank = make_bank(2000)
    ids = np.random.default_rng(0).integers(0, 50, 20)
    features = [
        {"input_ids": part, "memgraft_rows": np.arange(len(part)), "memgraft_orders": [1] + [2] * (len(part) - 1)}
        for part in (ids, ids[:5])
    ]
    batch = GraftCollator(bank, pad)(features)
    assert batch["left"] == ["input_ids"]
    assert batch["memgraft"].rows[1].tolist() == [-1] * 15 + [0, 1, 2, 3, 4]
    assert batch["memgraft"].orders[1].tolist() == [0] * 15 + [1, 2, 2, 2, 2]


def test_what_cannot_work_is_refused(make_bank):
    bank = make_bank(300)
    with pytest.raises(ConfigError, match="'rows'"):
        GraftCollator(bank, mode="rows")
    for inner, match in (
        (lambda features: [1], "list"),
        (lambda features: {"labels": 1}, "labels"),
        (lambda features: {"input_ids": [1]}, "input_ids"),
    ):
        with pytest.raises(ArgumentError, match=match):
            GraftCollator(bank, inner)([])
    with pytest.raises(ValueError, match="-9"):
        GraftCollator(bank)([{"input_ids": torch.tensor([1, -9])}])
    # A token that the keys do not know is in none of them.
    assert GraftCollator(bank)([{"input_ids": torch.tensor([1, 99])}])["memgraft"].rows[0, 1] == -1


def test_lengths_of_packed_examples_are_used(make_bank):
    bank = make_bank(2000)
    ids = np.random.default_rng(0).integers(0, 50, 30)
    expected = np.concatenate([bank.index.lookup(part)[0] for part in (ids[:11], ids[11:13], ids[13:])])
    assert (bank.index.lookup(ids)[0] != expected).any()
    packed = {"input_ids": torch.from_numpy(ids), "seq_lengths": [11, 2, 17]}
    for collator in (GraftCollator(bank), GraftCollator(bank, pad)):
        found = collator([packed, packed])["memgraft"]
        np.testing.assert_array_equal(found.rows, [expected, expected])
    shorter = {"input_ids": torch.from_numpy(ids[:11]), "seq_lengths": [11]}
    found = GraftCollator(bank, pad)([shorter, packed])["memgraft"]
    np.testing.assert_array_equal(found.rows[1], expected)
    assert (found.rows[0, :19] == -1).all()
    with pytest.raises(ArgumentError, match="sum to its 30 tokens, found 29"):
        GraftCollator(bank)([{**packed, "seq_lengths": [11, 18]}])

    def cut(features):
        return {"input_ids": torch.stack([feature["input_ids"][:20] for feature in features])}

    with pytest.raises(ArgumentError, match="must not cut or merge"):
        GraftCollator(bank, cut)([packed])


def test_columns_of_examples_that_were_padded_before(make_bank):
    bank = make_bank(2000)
    ids = np.random.default_rng(0).integers(0, 50, 12)
    mask = np.array([0] * 3 + [1] * 9)
    example = {"input_ids": torch.from_numpy(np.where(mask, ids, -100)), "attention_mask": torch.from_numpy(mask)}
    expected = np.concatenate([np.full(3, -1), bank.index.lookup(ids[3:7])[0], bank.index.lookup(ids[7:])[0]])
    found = GraftCollator(bank, column="documents")([{**example, "documents": [0] * 7 + [1] * 5}])["memgraft"]
    np.testing.assert_array_equal(found.rows[0], expected)
    annotated = {**example, "memgraft_rows": np.where(mask, 5, -1), "memgraft_orders": mask}
    assert GraftCollator(bank)([annotated])["memgraft"].rows.tolist() == [[-1] * 3 + [5] * 9]


def test_examples_that_nobody_pads_name_the_collator_that_does(make_bank):
    bank = make_bank(200)
    way_out = r"; give inner=, a collator that pads and makes tensors: DataCollatorForLanguageModeling"
    lists = [{"input_ids": [1, 2, 3]}, {"input_ids": [4, 5, 6]}]
    with pytest.raises(ArgumentError, match=r"gave a mapping whose input_ids are a list: expected .*" + way_out):
        GraftCollator(bank)(lists)
    for ragged in ([{"input_ids": [1, 2]}, {"input_ids": [1]}], [{"input_ids": torch.ones(n).long()} for n in (1, 2)]):
        with pytest.raises(ArgumentError, match=r"the examples do not stack \(.*\)" + way_out):
            GraftCollator(bank)(ragged)
    with pytest.raises(ArgumentError, match=r"gave a mapping with tokens: expected .* \(B, T\)$"):
        GraftCollator(bank, lambda _: {"tokens": 1})(lists)
