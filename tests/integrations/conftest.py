"""Shared banks."""

from __future__ import annotations

import pytest

from grafted_models import make_bank
from memgraft.bank import Bank


@pytest.fixture(scope="session")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Bank:
    """One tap, 150 rows, float32."""
    return make_bank(tmp_path_factory.mktemp("bank") / "bank")


@pytest.fixture(scope="session")
def two_taps(tmp_path_factory: pytest.TempPathFactory) -> Bank:
    """Two taps."""
    return make_bank(tmp_path_factory.mktemp("bank") / "bank", taps=(3, 7), seed=5)
