"""The page on a model of one's own runs as it stands."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from grafted_models import make_bank
from pages import Page

PAGE = Page("docs/OWN_MODEL.md")


def test_a_model_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PAGE.check_all_run("model", "loop")
    monkeypatch.chdir(tmp_path)
    make_bank(tmp_path / "bank")
    namespace = PAGE.run("loop", PAGE.run("model"))
    layer, memory = namespace["model"].graft, namespace["memory"]
    assert memory.hit.any()
    assert not memory.hit.all()
    assert layer.memory_value.weight.abs().max() > 0, "the memory's projection trains"
    assert torch.isfinite(namespace["loss"])
