"""Shared fixtures."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

# Two noisy cores make no promise about an example's time; CI repeats the same examples, a developer's runs explore.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture
def make_bank(tmp_path: Path) -> Callable:
    """Makes small banks: make_bank(num_rows, taps=…, value_dim=…, dtype=…, values=…)."""
    from bank_cases import bank_maker

    return bank_maker(tmp_path)
