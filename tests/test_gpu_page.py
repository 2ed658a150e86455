"""docs/GPU.md: its Python runs as it stands, on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from grafted_models import CACHE, grafted, make_bank, prompts  # noqa: E402
from pages import Page  # noqa: E402

PAGE = Page("docs/GPU.md")


def test_every_python_block_is_run() -> None:
    PAGE.check_all_run("kernel", "captured", "hot")


@pytest.mark.skipif(CACHE != "cache", reason="the page names the cache as transformers 5.24 does")
def test_a_step_in_fixed_places(tmp_path: Path) -> None:
    model, prompt = grafted(make_bank(tmp_path / "bank")), prompts(2, 9)
    namespace = {"model": model, "prompt": prompt}
    PAGE.run("kernel", namespace)
    assert "switched off" in repr(model)
    PAGE.run("captured", namespace)
    expected = model.generate(prompt, max_new_tokens=17, do_sample=False)[:, 9:]
    assert torch.equal(torch.stack(namespace["tokens"], dim=1), expected)  # type: ignore[call-overload]


def test_hot_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_bank(Path("bank")).close()
    namespace = {"device": "cpu", "train": print}
    PAGE.run("hot", namespace)
    assert len(namespace["hot"]) == 150  # type: ignore[arg-type]
    assert len(namespace["workers"]) == 2  # type: ignore[arg-type]
