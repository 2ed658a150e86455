"""The guide's Python runs as it stands, block after block; its list of families is the one that errors quote."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pages import Page

GUIDE = Page("docs/GRAFTING.md")


def test_every_block_is_run() -> None:
    GUIDE.check_all_run(*"012345")


def test_families_are_those_that_are_tested() -> None:
    from memgraft.integrations.transformers.families import TESTED_FAMILIES

    paragraph = re.search(r"^apertus, .*?\.$", GUIDE.text, re.DOTALL | re.MULTILINE)
    assert paragraph is not None
    assert tuple(re.findall(r"\w+", paragraph[0])) == TESTED_FAMILIES


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT reads transformers' old name
def test_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import memgraft
    from tiny import tiny_donor, tiny_text

    monkeypatch.chdir(tmp_path)
    Path("texts").mkdir()
    for number in range(4):
        Path(f"texts/{number}.txt").write_text(tiny_text(number), encoding="utf-8")
    Path("text.txt").write_text(tiny_text(8), encoding="utf-8")
    tiny_donor(tmp_path / "donor")
    tiny_donor(tmp_path / "recipient", seed=2)
    corpus = memgraft.Corpus.open("texts", tokenizer="recipient/tokenizer.json")
    keys = memgraft.mine(corpus, budget=300)
    memgraft.harvest(keys, recipient_tokenizer="recipient/", donor="donor/", taps=(2,), out="bank/")

    namespace: dict[str, object] = {}
    for name in GUIDE.blocks:
        GUIDE.run(name, namespace)
    # The recipient was frozen, so the saved graft is the whole difference.
    model, again, ids = (namespace[name] for name in ("model", "again", "ids"))
    for one in (model, again):
        one.eval()  # type: ignore[attr-defined]
    assert (model(**ids).logits == again(**ids).logits).all()  # type: ignore[operator]
    history = namespace["trainer"].state.log_history  # type: ignore[attr-defined]
    assert any("memgraft/default/site1/miss/gate_mean" in entry for entry in history)
