"""The collator and the prefetcher under the loops that people use."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
accelerate = pytest.importorskip("accelerate")

from bank_cases import child_environment  # noqa: E402
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
        save_strategy="no",
        logging_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **arguments,
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


def make_prepared(bank, mode, *, dispatch, **options):
    configuration = accelerate.DataLoaderConfiguration(dispatch_batches=dispatch)
    accelerator = accelerate.Accelerator(cpu=True, dataloader_config=configuration, **options)
    loader = torch.utils.data.DataLoader(Stream(), batch_size=4, collate_fn=GraftCollator(bank, pad, mode=mode))
    return accelerator, accelerator.prepare(loader)


@pytest.mark.parametrize("mode", ["handle", "ids"])
@pytest.mark.filterwarnings("ignore")
def test_accelerate_sees_the_end_of_an_epoch_when_it_comes(make_bank, mode):
    bank = make_bank(1000)
    accelerator, prepared = make_prepared(bank, mode, dispatch=False, gradient_accumulation_steps=3)
    loader = prefetch(prepared, bank, depth=3)
    assert prefetch(prepared, bank).facts is loader.facts, "staging goes underneath once"
    model = Recipient(bank)
    for _ in range(2):
        synced = []
        for batch in loader:
            with accelerator.accumulate(model):
                model(**batch)
                synced.append(accelerator.sync_gradients)
        assert synced == [False, False, True, True], "at every third batch and at the last, not before"
    assert len(model.seen) == 32
    assert all(model.staged)
    assert loader.facts.num_batches == 8


@pytest.mark.filterwarnings("ignore")
def test_accelerate_dispatching_needs_ids(make_bank):
    bank = make_bank(1000)
    model = Recipient(bank)
    for batch in prefetch(make_prepared(bank, "ids", dispatch=True)[1], bank):
        model(**batch)
    assert len(model.seen) == 16
    assert all(model.staged)
    with pytest.raises(ConfigError, match=r"GraftCollator\(mode='ids'\)"):
        prefetch(make_prepared(bank, "handle", dispatch=True)[1], bank)


def _dispatch_in_two_processes(bank, folder):
    model = Recipient(bank)
    accelerator, prepared = make_prepared(bank, "ids", dispatch=True)
    assert accelerator.num_processes == 2
    for batch in prefetch(prepared, bank):
        model(**batch)
        accelerator.gather(torch.zeros(1))
    (folder / f"seen{accelerator.process_index}").write_text(str(len(model.seen)))
    try:
        next(iter(make_prepared(bank, "handle", dispatch=True)[1]))
    except (TypeError, RuntimeError) as error:  # the second is what the other rank sees
        (folder / f"error{accelerator.process_index}").write_text(str(error))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_accelerate_dispatches_between_processes(make_bank, tmp_path):
    bank = make_bank(1000)
    launcher = (
        "import sys; from pathlib import Path; import accelerate; from memgraft import Bank; import test_trainers;"
        "accelerate.debug_launcher(test_trainers._dispatch_in_two_processes, "
        "(Bank.open(sys.argv[1]), Path(sys.argv[2])), 2)"
    )
    environment = child_environment(Path(__file__).parent, Path(__file__).parents[1])
    command = [sys.executable, "-c", launcher, str(bank.path), str(tmp_path)]
    subprocess.run(command, check=True, timeout=120, env=environment)
    assert [(tmp_path / f"seen{rank}").read_text() for rank in (0, 1)] == ["8", "8"]
    assert "MemoryBatch" in (tmp_path / "error0").read_text()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore")
def test_stateful_data_loader_resumes(make_bank, workers):
    stateful = pytest.importorskip("torchdata.stateful_dataloader")
    bank = make_bank(1000)

    def loader():
        collator = GraftCollator(bank, pad)
        return stateful.StatefulDataLoader(Tokens(), batch_size=4, num_workers=workers, collate_fn=collator)

    whole = Recipient(bank)
    for batch in prefetch(loader(), bank):
        whole(**batch)
    first = loader()
    part = Recipient(bank)
    iterator = iter(first)
    for _ in range(2):
        part(**next(iterator))
    state = first.state_dict()
    second = loader()
    second.load_state_dict(state)
    for batch in prefetch(second, bank):
        part(**batch)
    assert part.seen == whole.seen
