"""Checkpoints of the Trainer and of TRL's trainer that hold a graft beside an adapter, and where grafts are found."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import Trainer, TrainingArguments

from grafted_models import FIRST, VOCAB, config, grafted, prompts, recipient, wake, word_tokenizer
from memgraft.errors import ArgumentError, GraftError, StorageError
from memgraft.integrations.peft import EXCLUDE_MODULES
from memgraft.torch import GraftCallback, graft, graft_layers, load_graft, mark_trainable, save_graft

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT's and TRL's own warnings are not ours
LORA = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], exclude_modules=EXCLUDE_MODULES, task_type="CAUSAL_LM")


def arguments(folder: Path, steps: int, **options: Any) -> TrainingArguments:
    settings = {"per_device_train_batch_size": 4, "learning_rate": 1e-2, "save_steps": 2, "logging_steps": 1}
    settings |= {
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "max_steps": steps,
        "lr_scheduler_type": "constant",
    }
    return TrainingArguments(str(folder), **settings, **options)


def rows() -> list[dict[str, list[int]]]:
    ids = torch.randint(FIRST, VOCAB, (32, 12), generator=torch.Generator().manual_seed(0)).tolist()
    return [{"input_ids": row, "labels": row} for row in ids]


def adapted(bank: Any, order: str) -> Any:
    torch.manual_seed(5)
    if order == "graft_first":
        return get_peft_model(grafted(bank), dataclasses.replace(LORA))
    return wake(graft(get_peft_model(recipient(), dataclasses.replace(LORA)), bank, config()))


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.named_parameters() if tensor.requires_grad}


@pytest.mark.parametrize("order", ["graft_first", "adapter_first"])
def test_resumed_is_uninterrupted_for_graft_and_adapter(order: str, bank: Any, tmp_path: Path) -> None:
    whole = adapted(bank, order)
    Trainer(whole, arguments(tmp_path / "whole", 4), train_dataset=rows(), callbacks=[GraftCallback()]).train()
    expected = weights_of(whole)
    assert any("lora_" in name for name in expected)
    assert any(".memgraft." in name for name in expected)
    first = adapted(bank, order)
    Trainer(first, arguments(tmp_path / "run", 2), train_dataset=rows(), callbacks=[GraftCallback()]).train()
    again = adapted(bank, order)
    trainer = Trainer(again, arguments(tmp_path / "run", 4), train_dataset=rows(), callbacks=[GraftCallback()])
    trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    for name, tensor in weights_of(again).items():
        torch.testing.assert_close(tensor, expected[name], atol=0, rtol=0, msg=name)
    # A checkpoint becomes a graft.
    loaded = load_graft(recipient(), tmp_path / "run" / "checkpoint-2", bank=bank)
    site = graft_layers(first)["default"][0].memory_value.weight
    assert torch.equal(graft_layers(loaded)["default"][0].memory_value.weight, site)


def test_a_checkpoint_without_the_graft_is_refused(bank: Any, tmp_path: Path) -> None:
    model = adapted(bank, "graft_first")
    mark_trainable(model)
    Trainer(model, arguments(tmp_path / "run", 2), train_dataset=rows()).train()
    again = Trainer(
        adapted(bank, "graft_first"),
        arguments(tmp_path / "run", 4),
        train_dataset=rows(),
        callbacks=[GraftCallback()],
    )
    with pytest.raises(GraftError, match="would start anew"):
        again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    with pytest.raises(GraftError, match="checkpoint without a graft"):
        load_graft(recipient(), tmp_path / "run" / "checkpoint-2", bank=bank)


@pytest.mark.parametrize("order", ["graft_first", "adapter_first"])
def test_a_resume_without_the_callback_is_refused(order: str, bank: Any, tmp_path: Path) -> None:
    model = adapted(bank, order)
    mark_trainable(model)
    Trainer(model, arguments(tmp_path / "run", 2), train_dataset=rows()).train()
    checkpoint = tmp_path / "run" / "checkpoint-2"
    again = adapted(bank, order)
    mark_trainable(again)
    with pytest.raises(GraftError, match=r"<checkpoint>/memgraft/default/graft\.json.*GraftCallback"):
        Trainer(again, arguments(tmp_path / "run", 4), train_dataset=rows()).train(str(checkpoint))
    # The way out that the message names.
    anew = GraftCallback(missing="anew")
    Trainer(again, arguments(tmp_path / "run", 4), train_dataset=rows(), callbacks=[anew]).train(str(checkpoint))
    # Evaluation of the adapter alone, a graft that was loaded and is frozen, and a graft that shall start anew.
    save_graft(model, tmp_path / "graft")
    loaded = load_graft(recipient(), tmp_path / "graft", bank=bank)
    kept = PeftModel.from_pretrained(loaded, checkpoint, is_trainable=True)
    kept.train()(prompts())
    mark_trainable(kept)
    kept(prompts())
    kept.load_adapter(checkpoint, "default", is_trainable=True)
    with torch.no_grad():
        kept(prompts())
    kept.eval()(prompts())
    with pytest.raises(GraftError, match="start anew"):
        kept.train()(prompts())
    kept.load_state_dict(kept.state_dict())
    kept(prompts())
    # PEFT saves embeddings that were resized beside the adapter.
    some = {name: tensor for name, tensor in kept.state_dict().items() if "lora_" in name or "embed_tokens" in name}
    kept.load_state_dict(some, strict=False)
    with pytest.raises(GraftError, match="start anew"):
        kept(prompts())
    kept.load_state_dict({name: tensor for name, tensor in kept.state_dict().items() if "norm" in name}, strict=False)
    mark_trainable(kept)
    kept(prompts())


def test_another_way_with_missing_grafts_is_refused() -> None:
    with pytest.raises(ArgumentError, match="'anew'"):
        GraftCallback(missing="ignore")  # type: ignore[arg-type]


@pytest.mark.parametrize("kept", [False, True])
def test_the_best_adapter_is_not_left_beside_the_last_graft(kept: bool, bank: Any, tmp_path: Path) -> None:
    model = adapted(bank, "graft_first")
    mark_trainable(model)
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "loss"}
    # Training lowers the loss, so that the highest one is the first checkpoint's.
    settings = arguments(tmp_path / "run", 4, **best, greater_is_better=True)
    callbacks = [GraftCallback()] if kept else []
    trainer = Trainer(model, settings, train_dataset=rows(), eval_dataset=rows()[:4], callbacks=callbacks)
    if kept:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="weights of an adapter")
            trainer.train()
        assert trainer.state.best_model_checkpoint == str(tmp_path / "run" / "checkpoint-2")
        there = load_graft(recipient(), tmp_path / "run" / "checkpoint-2", bank=bank)
        sites = [graft_layers(one)["default"][0].memory_value.weight for one in (model, there)]
        assert torch.equal(*sites)
    else:
        with pytest.warns(UserWarning, match="stays as it was trained last"):
            trainer.train()


def test_adapters_inside_a_graft_and_frozen_grafts_are_noticed(bank: Any) -> None:
    inside = get_peft_model(grafted(bank), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    with pytest.raises(GraftError, match="exclude_modules"):
        inside(prompts())
    frozen = get_peft_model(grafted(bank), dataclasses.replace(LORA)).train()
    with pytest.warns(UserWarning, match="the graft is frozen"):
        frozen(prompts())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frozen(prompts())


@pytest.mark.slow
def test_sft_with_an_adapter_of_its_own_trains_and_resumes_both(bank: Any, tmp_path: Path) -> None:
    import pyarrow
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    def trainer(folder: Path, steps: int, callbacks: Any = None) -> Any:
        torch.manual_seed(5)
        settings = arguments(folder, steps).to_dict()
        chosen = ("per_device_train_batch_size", "learning_rate", "save_steps", "max_steps", "lr_scheduler_type")
        options = SFTConfig(
            str(folder), **{name: settings[name] for name in chosen}, report_to=[], use_cpu=True, bf16=False,
            disable_tqdm=True, gradient_checkpointing=False, dataset_kwargs={"skip_prepare_dataset": True},
        )  # fmt: skip
        table = pyarrow.table({"input_ids": [row["input_ids"] for row in rows()]})
        return SFTTrainer(
            model=grafted(bank),
            args=options,
            train_dataset=Dataset(table, fingerprint="rows"),
            processing_class=word_tokenizer(),
            peft_config=dataclasses.replace(LORA),
            callbacks=[GraftCallback()] if callbacks is None else callbacks,
        )

    whole = trainer(tmp_path / "whole", 4)
    whole.train()
    trainer(tmp_path / "run", 2).train()
    # PEFT freezes the graft where no callback lets it train.
    trainer(tmp_path / "without", 2, callbacks=[]).train()
    with pytest.raises(GraftError, match="GraftCallback"):
        trainer(tmp_path / "without", 4, callbacks=[]).train(str(tmp_path / "without" / "checkpoint-2"))
    again = trainer(tmp_path / "run", 4)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    expected = weights_of(whole.model)
    assert any(".memgraft." in name for name in expected)
    for name, tensor in weights_of(again.model).items():
        torch.testing.assert_close(tensor, expected[name], atol=0, rtol=0, msg=name)


# ------------------------------------------------------------------ where a graft is found


def test_a_graft_of_the_hub_is_read_from_its_cache(bank: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    model = grafted(bank)
    commit = "0" * 40
    repository = tmp_path / "hub" / "models--somebody--graft"
    save_graft(model, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    ids = prompts()
    assert torch.equal(load_graft(recipient(), "somebody/graft", bank=bank)(ids).logits, model(ids).logits)
    with pytest.raises(StorageError, match="somebody/else: no such folder here"):
        load_graft(recipient(), "somebody/else", bank=bank)


def test_the_bank_path_is_checked_and_a_moved_bank_is_named(bank: Any, two_taps: Any, tmp_path: Path) -> None:
    model = grafted(bank)
    with pytest.raises(GraftError, match="no bank is there"):
        save_graft(model, tmp_path / "graft", bank_path="../nowhere")
    with pytest.raises(GraftError, match="expected the graft's bank"):
        save_graft(model, tmp_path / "graft", bank_path=str(two_taps.path))
    (tmp_path / "moving").symlink_to(bank.path)
    save_graft(model, tmp_path / "graft", bank_path="../moving")
    load_graft(recipient(), tmp_path / "graft")
    (tmp_path / "moving").unlink()
    with pytest.raises(StorageError, match=f"{bank.fingerprint} is not at ../moving: give where it is now as bank="):
        load_graft(recipient(), tmp_path / "graft")


def test_a_recipient_that_was_trained_too_is_said(bank: Any, tmp_path: Path) -> None:
    model, ids = grafted(bank), prompts()
    save_graft(model, tmp_path / "fresh")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    with pytest.warns(UserWarning, match="weights of the recipient changed"):
        save_graft(model, tmp_path / "graft")
