"""torchdata's StatefulDataLoader: batches that were drawn ahead of the trainer are seen again after a resume."""

import pytest

torch = pytest.importorskip("torch")
stateful = pytest.importorskip("torchdata.stateful_dataloader")

from test_collate import Examples  # noqa: E402
from test_prefetch import check, wait_for  # noqa: E402

from memgraft.data import GraftCollator, prefetch  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


def make_loader(bank, workers, mode="handle", **options):
    options = {"batch_size": 4, "num_workers": workers, "collate_fn": GraftCollator(bank, mode=mode), **options}
    return stateful.StatefulDataLoader(Examples(40), **options)


def numbers(batches, bank, limit=None):
    found = []
    for place, batch in enumerate(batches):
        check(batch, bank)
        found += batch["number"].tolist()
        if place + 1 == limit:
            break
    return found


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("mode", ["handle", "ids"])
@pytest.mark.parametrize("depth", [1, 4])
@pytest.mark.parametrize("seen", [0, 1, 3, 10])
def test_a_resumed_run_sees_every_batch_once(make_bank, workers, mode, depth, seen):
    bank = make_bank(300)
    first = prefetch(make_loader(bank, workers, mode), bank, depth=depth)
    iterator = iter(first)
    part = [number for _ in range(seen) for number in next(iterator)["number"].tolist()]
    # All that fits is drawn ahead before the state is taken.
    wait_for(lambda: iterator.num_staged == min(depth, 10 - seen))
    state = first.state_dict()
    iterator.close()
    assert first.state_dict() == state, "closing draws no batch"
    second = prefetch(make_loader(bank, workers, mode), bank, depth=depth)
    second.load_state_dict(state)
    assert part + numbers(second, bank) == list(range(40))
    assert numbers(second, bank) == list(range(40)), "the epoch after it is whole"


@pytest.mark.parametrize("workers", [0, 2])
def test_shuffled_epochs_resume_in_their_own_order(make_bank, workers):
    bank = make_bank(300)

    def make():
        generator = torch.Generator().manual_seed(5)
        return prefetch(make_loader(bank, workers, shuffle=True, generator=generator), bank, depth=3)

    whole = numbers(make(), bank)
    assert sorted(whole) == list(range(40)) != whole
    first = make()
    part = numbers(first, bank, limit=4)
    second = make()
    second.load_state_dict(first.state_dict())
    assert part + numbers(second, bank) == whole


def test_a_finished_epoch_resumes_at_the_next(make_bank):
    bank = make_bank(300)
    first = prefetch(make_loader(bank, 0), bank)
    assert numbers(first, bank) == list(range(40))
    second = prefetch(make_loader(bank, 0), bank)
    second.load_state_dict(first.state_dict())
    assert numbers(second, bank) == list(range(40))


def test_plain_loaders_have_no_state(make_bank):
    bank = make_bank(300)
    loader = prefetch(torch.utils.data.DataLoader(Examples(8), collate_fn=GraftCollator(bank)), bank)
    assert not hasattr(loader, "state_dict")
    assert not hasattr(loader, "load_state_dict")
    assert len(list(loader)) == 8
