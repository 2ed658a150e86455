"""lm-evaluation-harness on a task that lies on the disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from grafted_models import config, make_bank, recipient, wake, word_tokenizer
from memgraft.errors import GraftError
from memgraft.integrations.transformers import disabled, graft, save_graft

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # the harness's own warnings are not ours

TASK = """
task: tiny_choice
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
doc_to_choice: choices
metric_list:
  - metric: acc
"""


def documents() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for n in range(16):
        words = [f"w{int(w)}" for w in torch.randint(0, 37, (8,), generator=generator)]
        found.append({"question": " ".join(words[:6]), "choices": words[6:], "answer": n % 2})
    return found


def by_hand(model: Any, tokenizer: Any) -> list[int]:
    """The choice of the higher log-likelihood, from plain forwards."""
    chosen = []
    for document in documents():
        scores = []
        for choice in document["choices"]:
            ids = torch.tensor([tokenizer.encode(f"{document['question']} {choice}", add_special_tokens=False)])
            with torch.no_grad():
                scores.append(model(ids).logits.log_softmax(-1)[0, -2, ids[0, -1]].item())
        chosen.append(int(scores[1] > scores[0]))
    return chosen


def test_a_local_task_with_memory_on_and_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    from lm_eval.tasks import TaskManager

    from memgraft.integrations.lm_eval import GraftLM, evaluate_on_and_off

    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in documents()))
    (tmp_path / "tiny_choice.yaml").write_text(TASK.format(data=data))
    bank = make_bank(tmp_path / "bank")
    model, tokenizer = wake(graft(recipient(), bank, config())), word_tokenizer()
    on = by_hand(model, tokenizer)
    with disabled(model):
        off = by_hand(model, tokenizer)
    assert on != off
    results = evaluate_on_and_off(
        model,
        tokenizer,
        tasks=["tiny_choice"],
        batch_size=4,
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
    )
    answers = [document["answer"] for document in documents()]
    for arm, choices in (("on", on), ("off", off)):
        expected = sum(a == b for a, b in zip(choices, answers, strict=True)) / len(answers)
        assert results[arm]["tiny_choice"]["acc,none"] == pytest.approx(expected)
    # The harness caches by request alone: one cache for each arm, and none for two.
    cached = {"tasks": ["tiny_choice"], "bootstrap_iters": 0, "use_cache": str(tmp_path / "answers")}
    for _ in range(2):
        manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
        again_from_cache = evaluate_on_and_off(model, tokenizer, task_manager=manager, **cached)
        for arm in ("on", "off"):
            assert again_from_cache[arm]["tiny_choice"]["acc,none"] == results[arm]["tiny_choice"]["acc,none"]
    from lm_eval import simple_evaluate

    for memory in (True, False):
        options = {**cached, "use_cache": str(tmp_path / "shared")}
        manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
        adapter = GraftLM(model, tokenizer=tokenizer, memory=memory)
        if memory:
            simple_evaluate(model=adapter, task_manager=manager, **options)
        else:
            with pytest.raises(GraftError, match="holds answers of on-"):
                simple_evaluate(model=adapter, task_manager=manager, **options)
    saved = save_graft(model, tmp_path / "graft")
    again = GraftLM(recipient(), tokenizer=tokenizer, graft=str(saved), bank=str(bank.path))
    ids = torch.arange(3, 20)[None]
    assert torch.equal(again._model_call(ids), model(ids).logits)
    with pytest.raises(GraftError, match="no graft"):
        GraftLM(recipient(), tokenizer=tokenizer)
