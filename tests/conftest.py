from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def make_bank(tmp_path: Path) -> Callable:
    """Makes small banks: make_bank(num_rows, taps=…, value_dim=…, dtype=…, values=…)."""
    from bank_cases import bank_maker

    return bank_maker(tmp_path)
