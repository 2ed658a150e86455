"""The collator and the prefetcher under the loops that people use."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
from memgraft.data import GraftCollator, MemoryBatch, prefetch  # noqa: E402
from memgraft.errors import ArgumentError, ConfigError  # noqa: E402


class Recipient(torch.nn.Module):
    """Learns to sum the values of its hits; checks on the way that they are the bank's."""

    def __init__(self, bank):
        super().__init__()
        self.bank = [bank]
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.seen = []
        self.staged = []

    def forward(self, input_ids=None, attention_mask=None, labels=None, memgraft=None):
        memory = MemoryBatch.wrap(memgraft)
        bank = self.bank[0]
        self.staged.append(memory.staged)
        memory = memory.stage(bank)
        tokens = torch.where(memory.segments < 0, 0, input_ids).numpy()
        rows, _ = bank.lookup(tokens, segments=memory.segments.numpy())
        np.testing.assert_array_equal(memory.rows, rows)
        assert (rows >= 0).any()
        values = memory.floats()[memory.inverse[memory.hit].long()]
        np.testing.assert_array_equal(values, bank.floats(rows[rows >= 0]))
        self.seen += input_ids[:, 0].tolist()
        return {"loss": (values.mean() * self.weight - 1) ** 2, "logits": values.mean().reshape(1, 1)}


class Tokens(torch.utils.data.Dataset):
    def __init__(self, num_examples=16, column=False):
        generator = np.random.default_rng(0)
        self.examples = [
            {"input_ids": generator.integers(0, 50, 12 + place % 3).tolist(), "number": place}
            for place in range(num_examples)
        ]
        for example in self.examples if column else ():
            length = len(example["input_ids"])
            example["documents"] = [0] * 5 + [1] * (length - 5)

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, place):
        return dict(self.examples[place])


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(Tokens())


def pad(features):
    width = max(len(feature["input_ids"]) for feature in features)
    ids = torch.zeros(len(features), width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, feature in enumerate(features):
        ids[row, : len(feature["input_ids"])] = torch.tensor(feature["input_ids"])
        mask[row, : len(feature["input_ids"])] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.clone()}


class Prefetching(transformers.Trainer):
    def __init__(self, bank, **options):
        super().__init__(**options)
        self.bank = bank

    def get_train_dataloader(self):
        self.loader = prefetch(super().get_train_dataloader(), self.bank, depth=2)
        return self.loader


def make_trainer(cls, bank, folder, *, collator, dataset=None, **arguments):
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        num_train_epochs=2,
        report_to=[],
        logging_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **{"save_strategy": "no", **arguments},
    )
    own = {"bank": bank} if cls is Prefetching else {}
    return cls(
        model=Recipient(bank),
        args=arguments,
        data_collator=collator,
        train_dataset=Tokens() if dataset is None else dataset,
        **own,
    )


@pytest.mark.parametrize("mode", ["handle", "ids"])
@pytest.mark.parametrize("remove_unused_columns", [True, False])
@pytest.mark.parametrize("prefetching", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore")
def test_stock_trainer(make_bank, tmp_path, mode, remove_unused_columns, prefetching, workers):
    bank = make_bank(1000)
    trainer = make_trainer(
        Prefetching if prefetching else transformers.Trainer,
        bank,
        tmp_path / "run",
        collator=GraftCollator(bank, pad, mode=mode),
        remove_unused_columns=remove_unused_columns,
        dataloader_num_workers=workers,
        gradient_accumulation_steps=2,
    )
    before = trainer.model.weight.item()
    trainer.train()
    assert len(trainer.model.seen) == 32, "two epochs of sixteen examples"
    assert trainer.model.staged == [prefetching] * 8
    assert trainer.model.weight.item() != before
    if prefetching:
        assert trainer.loader.facts.num_batches == 8


@pytest.mark.filterwarnings("ignore")
def test_trainer_and_a_column_of_segments(make_bank, tmp_path):
    bank = make_bank(1000)
    collator = GraftCollator(bank, pad, column="documents")
    options = {"collator": collator, "dataset": Tokens(column=True)}
    make_trainer(transformers.Trainer, bank, tmp_path, remove_unused_columns=False, **options).train()
    with pytest.raises(ArgumentError, match="remove_unused_columns=False"):
        make_trainer(transformers.Trainer, bank, tmp_path, remove_unused_columns=True, **options).train()


@pytest.mark.parametrize("dataset", [Tokens, Stream])
@pytest.mark.parametrize("mode", ["handle", "ids"])
@pytest.mark.filterwarnings("ignore")
def test_trainer_that_dispatches_needs_ids(make_bank, tmp_path, dataset, mode):
    bank = make_bank(1000)
    # For an IterableDataset dispatching is what accelerate does unless told otherwise.
    chosen = {"accelerator_config": {"dispatch_batches": True}} if dataset is Tokens else {}
    options = {"collator": GraftCollator(bank, pad, mode=mode), "dataset": dataset(), "max_steps": 4, **chosen}
    trainer = make_trainer(transformers.Trainer, bank, tmp_path, **options)
    if mode == "ids":
        trainer.train()
        assert len(trainer.model.seen) == 16
        return
    with pytest.raises(ConfigError, match=r"GraftCollator\(mode='ids'\), or dispatch_batches=False"):
        trainer.train()
    if dataset is Stream:
        options["accelerator_config"] = {"dispatch_batches": False}
        trainer = make_trainer(transformers.Trainer, bank, tmp_path, **options)
        trainer.train()
        assert len(trainer.model.seen) == 16


@pytest.mark.parametrize("prefetching", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_trainer_resumes_inside_an_epoch(make_bank, tmp_path, prefetching):
    bank = make_bank(1000)
    options = {"collator": GraftCollator(bank, pad), "dataset": Tokens(24), "save_strategy": "steps", "save_steps": 4}
    cls = Prefetching if prefetching else transformers.Trainer
    whole = make_trainer(cls, bank, tmp_path / "whole", **options)
    whole.train()
    again = make_trainer(cls, bank, tmp_path / "again", **options)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert len(whole.model.seen) == 48
    assert again.model.seen == whole.model.seen[16:], "what four steps of four examples saw is not seen again"
