"""The collator and the prefetcher under accelerate's loaders."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
accelerate = pytest.importorskip("accelerate")
pytest.importorskip("transformers")

from test_trainers import Recipient, Stream, Tokens, pad  # noqa: E402

from bank_cases import child_environment  # noqa: E402
from memgraft.data import GraftCollator, prefetch  # noqa: E402
from memgraft.errors import ConfigError  # noqa: E402


def make_prepared(bank, mode, *, dispatch, loader=None, **options):
    configuration = accelerate.DataLoaderConfiguration(dispatch_batches=dispatch)
    accelerator = accelerate.Accelerator(cpu=True, dataloader_config=configuration, **options)
    settings = {"batch_size": 4, "collate_fn": GraftCollator(bank, pad, mode=mode), **(loader or {})}
    return accelerator, accelerator.prepare(torch.utils.data.DataLoader(Stream(), **settings))


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
def test_prepared_after_prefetch_is_refused(make_bank):
    bank = make_bank(1000)
    loader = torch.utils.data.DataLoader(Tokens(), batch_size=4, collate_fn=GraftCollator(bank, pad))
    accelerator = accelerate.Accelerator(cpu=True)
    with pytest.raises(ConfigError, match=r"prefetch\(accelerator.prepare\(loader\), bank\)"):
        accelerator.prepare(prefetch(loader, bank))
    prepared = prefetch(accelerator.prepare(loader), bank)
    assert accelerator.prepare(prepared) is prepared
    assert isinstance(prepared, torch.utils.data.DataLoader)
    assert isinstance(prepared.loader, torch.utils.data.DataLoader), "with staging underneath"
    assert sum(len(batch["input_ids"]) for batch in prepared) == 16


def _read_in_two_processes(bank, folder):
    accelerator = accelerate.Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    loader = torch.utils.data.DataLoader(Tokens(), batch_size=4, collate_fn=GraftCollator(bank, pad))
    ids = [
        row[mask.bool()].tolist()
        for batch in prefetch(accelerator.prepare(loader), bank)
        for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    (folder / f"read{accelerator.process_index}").write_text(json.dumps(ids))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_rank_reads_its_part(make_bank, tmp_path):
    launch("_read_in_two_processes", make_bank(1000), tmp_path)
    read = [json.loads((tmp_path / f"read{rank}").read_text()) for rank in (0, 1)]
    assert len(read[0]) == len(read[1]) == 8
    assert sorted(read[0] + read[1]) == sorted(example["input_ids"] for example in Tokens().examples)


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


def launch(function, bank, folder):
    """Runs a function of this file in two processes of gloo."""
    launcher = (
        "import sys; from pathlib import Path; import accelerate; from memgraft import Bank; import test_accelerate;"
        f"accelerate.debug_launcher(test_accelerate.{function}, (Bank.open(sys.argv[1]), Path(sys.argv[2])), 2)"
    )
    environment = child_environment(Path(__file__).parent, Path(__file__).parents[1])
    command = [sys.executable, "-c", launcher, str(bank.path), str(folder)]
    subprocess.run(command, check=True, timeout=120, env=environment)


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
    except (ConfigError, RuntimeError) as error:  # the second is what the other rank sees
        (folder / f"error{accelerator.process_index}").write_text(str(error))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_accelerate_dispatches_between_processes(make_bank, tmp_path):
    bank = make_bank(1000)
    launch("_dispatch_in_two_processes", bank, tmp_path)
    assert [(tmp_path / f"seen{rank}").read_text() for rank in (0, 1)] == ["8", "8"]
    assert "GraftCollator(mode='ids')" in (tmp_path / "error0").read_text()


@pytest.mark.parametrize(
    ("workers", "method"), [(0, None), (1, "fork"), pytest.param(1, "spawn", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("dispatch", [True, None])
@pytest.mark.filterwarnings("ignore")
def test_dispatched_handles_are_refused_wherever_they_are_made(make_bank, workers, method, dispatch):
    bank = make_bank(1000)
    settings = {"num_workers": workers, "multiprocessing_context": method, "timeout": 60 if workers else 0}
    _, prepared = make_prepared(bank, "handle", dispatch=dispatch, loader=settings)
    with pytest.raises(ConfigError, match=r"GraftCollator\(mode='ids'\), or dispatch_batches=False"):
        next(iter(prepared))


@pytest.mark.filterwarnings("ignore")
def test_other_handle_loaders_work_while_one_dispatches(make_bank):
    bank = make_bank(1000)
    training = iter(make_prepared(bank, "ids", dispatch=True)[1])
    next(training)
    evaluation = torch.utils.data.DataLoader(Tokens(), batch_size=4, collate_fn=GraftCollator(bank, pad))
    assert len(list(evaluation)) == 4
    assert len(list(training)) == 3


def test_pinning_a_dispatched_handle_is_refused(make_bank):
    bank = make_bank(1000)
    _, prepared = make_prepared(bank, "handle", dispatch=True)
    memory = GraftCollator(bank, pad)(list(Tokens(2).examples))["memgraft"]
    prepared.begin()
    try:
        with pytest.raises(ConfigError, match="mode='ids'"):
            memory.pin_memory()
    finally:
        prepared.end()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore")
def test_accelerate_with_a_stateful_loader_resumes_at_the_next_batch(make_bank, workers):
    pytest.importorskip("torchdata.stateful_dataloader")
    bank = make_bank(1000)

    def prepared():
        configuration = accelerate.DataLoaderConfiguration(use_stateful_dataloader=True, dispatch_batches=False)
        accelerator = accelerate.Accelerator(cpu=True, dataloader_config=configuration)
        collator = GraftCollator(bank, pad)
        loader = torch.utils.data.DataLoader(Tokens(32), batch_size=4, num_workers=workers, collate_fn=collator)
        return prefetch(accelerator.prepare(loader), bank, depth=3)

    whole, part = Recipient(bank), Recipient(bank)
    for batch in prepared():
        whole(**batch)
    first = prepared()
    for place, batch in enumerate(first):
        part(**batch)
        if place == 2:
            state = first.state_dict()
            break
    second = prepared()
    second.load_state_dict(state)
    for batch in second:
        part(**batch)
    assert all(part.staged)
    assert part.seen == whole.seen
