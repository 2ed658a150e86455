"""Shared fixtures."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Two noisy cores make no promise about an example's time; CI repeats the same examples, a developer's runs explore.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")
# Small tensors: a second thread of torch costs more than it brings, and two test processes share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# A shell without job control starts what it puts in the background with Ctrl-C ignored, and every process started from
# there inherits that; the tests of Ctrl-C send it to processes of their own.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of a card are skipped without one, wherever they are, and say so."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device here"))


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """No test takes the power away, so that Python need not wait for the disk; children and the core do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture
def make_bank(tmp_path: Path) -> Callable:
    """Makes small banks: make_bank(num_rows, taps=…, value_dim=…, dtype=…, values=…)."""
    from bank_cases import bank_maker

    return bank_maker(tmp_path)
