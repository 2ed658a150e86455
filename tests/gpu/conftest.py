"""What needs a card; skipped without one, as all that is marked ``gpu``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from grafted_models import make_bank  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1] / "nn"))


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            # Modules of other packages, while a compiler imports them, and what torch advises about a card (TF32,
            # device ids, the profiler's cycles): no two versions say the same.
            item.add_marker(pytest.mark.filterwarnings("ignore::DeprecationWarning"))
            item.add_marker(pytest.mark.filterwarnings("ignore:::(torch|triton|transformers|accelerate)"))


@pytest.fixture(scope="session")
def bank(tmp_path_factory):
    """One tap, 150 rows, float32."""
    return make_bank(tmp_path_factory.mktemp("bank") / "bank")


@pytest.fixture(scope="session", params=["bf16", "fp8_e4m3", "int8"])
def stored(request, tmp_path_factory):
    """Banks of every narrower storage dtype."""
    return make_bank(tmp_path_factory.mktemp("bank") / "bank", dtype=request.param)
