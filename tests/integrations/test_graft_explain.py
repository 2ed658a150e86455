"""What the memory does to a text, token by token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from grafted_models import grafted, make_bank, prompts, random_keys, recipient, word_tokenizer
from memgraft.bank import Bank
from memgraft.data import MemoryBatch
from memgraft.errors import ArgumentError, GraftError
from memgraft.torch import explain, record_telemetry, save_graft


@torch.no_grad()
def test_each_token_is_what_the_model_does_there(bank: Any) -> None:
    model, ids = grafted(bank), prompts(1, 20)
    explained = explain(model, ids)
    rows, orders = bank.lookup(ids.numpy())
    assert [one.row for one in explained] == [row if row >= 0 else None for row in rows[0].tolist()]
    assert [one.order for one in explained] == orders[0].tolist()
    assert {one.bank for one in explained} == {None, str(bank.path)}
    # Gates and norms are those of telemetry, effects those of one forward without the row.
    with record_telemetry(model) as telemetry:
        logits = model(ids).logits.log_softmax(-1)
    hits = [place for place, one in enumerate(explained) if one.row is not None]
    for site in (0, 2):
        mean = sum(explained[place].gate[site] for place in hits) / len(hits)
        assert telemetry.summary()[f"default/site{site}/hit/gate_mean"] == pytest.approx(mean, rel=1e-5)
        mean = sum(explained[place].injected[site] for place in hits) / len(hits)
        assert telemetry.summary()[f"default/site{site}/hit/injected_norm"] == pytest.approx(mean, rel=1e-5)
    place = next(place for place in hits if place < 19)
    off = torch.from_numpy(rows.copy())
    off[0, place] = -1
    memory = MemoryBatch(rows=off, orders=torch.from_numpy(orders), segments=torch.zeros(1, 20, dtype=torch.int32))
    without = model(ids, memgraft=memory).logits.log_softmax(-1)
    following = ids[0, place + 1]
    expected = float(logits[0, place, following] - without[0, place, following])
    assert explained[place].effect == pytest.approx(expected, abs=1e-5)
    assert abs(expected) > 1e-4
    assert explained[-1].effect is None
    assert torch.equal(model(ids).logits.log_softmax(-1), logits), "nothing is left behind"


def test_several_texts_are_refused(bank: Any) -> None:
    with pytest.raises(ArgumentError, match="text: expected one text, or its ids, got several"):
        explain(grafted(bank), ["a text", "another"])


def test_a_stack_names_the_bank_of_each_row(bank: Any, tmp_path: Path) -> None:
    ids = prompts(1, 20)
    overlay = make_bank(tmp_path / "overlay", keys=[tuple(ids[0, 3:9].tolist()), *random_keys(5, seed=4)], seed=4)
    stack = Bank.open([bank.path, overlay.path])
    explained = explain(grafted(bank), ids[0].tolist(), memory=stack)
    assert (explained[8].bank, explained[8].order) == (str(overlay.path), 6)
    assert str(bank.path) in {one.bank for one in explained}


def test_what_cannot_be_explained(bank: Any) -> None:
    with pytest.raises(ArgumentError, match="with tokenizer="):
        explain(grafted(bank), "a text")
    with pytest.raises(ArgumentError, match="at least one token"):
        explain(grafted(bank), [])
    with pytest.raises(ArgumentError, match=r'got a dict; give its \["input_ids"\]'):
        explain(grafted(bank), {"input_ids": [[5, 6]], "attention_mask": [[1, 1]]})
    with pytest.raises(GraftError, match="no memory to explain"):
        explain(grafted(bank, control="fallback_only"), [5, 6])


def test_the_verb(bank: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import json

    from typer.testing import CliRunner

    from memgraft.cli.app import build_app

    model = grafted(bank)
    save_graft(model, tmp_path / "model" / "graft")
    recipient().save_pretrained(tmp_path / "model" / "recipient")
    word_tokenizer().save_pretrained(tmp_path / "model" / "recipient")
    text = " ".join(f"w{int(token) - 3}" for token in prompts(1, 12)[0])
    arguments = ["inspect", str(tmp_path / "model"), "--text", text, "--bank", str(bank.path)]
    answer = CliRunner().invoke(build_app(), [*arguments, "--json"])
    assert answer.exit_code == 0, answer.output
    found = json.loads(answer.stdout)["tokens"]
    expected = explain(model, prompts(1, 12))
    assert [one["row"] for one in found] == [one.row for one in expected]
    assert [one["effect"] for one in found] == pytest.approx([one.effect for one in expected], abs=1e-5)
    shown = CliRunner().invoke(build_app(), arguments)
    assert "longest match" in shown.output
    (tmp_path / "model" / "recipient" / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    refused = CliRunner().invoke(build_app(), arguments)
    assert refused.exit_code == 2
    assert "recipient/tokenizer.json, found none; give --tokenizer" in refused.stderr
    named = CliRunner().invoke(build_app(), [*arguments, "--tokenizer", str(tmp_path / "tokenizer.json"), "--json"])
    assert json.loads(named.stdout)["tokens"] == found
    wrong = CliRunner().invoke(build_app(), [*arguments, "--tokenizer", str(tmp_path / "none.json")])
    assert "none.json: expected a tokenizer.json, found no such file" in wrong.stderr
