"""Hash tables under the stock Trainer: their own groups, sparse gradients, row-wise state, clipping, resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from grafted_models import FIRST, VOCAB, grafted
from memgraft.config import FallbackConfig
from memgraft.data import GraftCollator
from memgraft.integrations.transformers import graft_layers, optimizer_groups
from memgraft.nn import RowwiseAdamW


class Rows(Dataset[dict[str, torch.Tensor]]):
    def __init__(self) -> None:
        self.rows = torch.randint(FIRST, VOCAB, (64, 16), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


class Norms(TrainerCallback):
    """The norm of all gradients that reach the optimizer, tables included."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.norms: list[float] = []
        self.layouts: set[torch.layout] = set()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        self.layouts.update(gradient.layout for gradient in gradients)
        dense = [(g.to_dense() if g.is_sparse else g).flatten() for g in gradients]
        self.norms.append(float(torch.cat(dense).norm()))


def model_with(bank: Any, *, sparse: bool) -> Any:
    fallback = FallbackConfig(table_size=31, num_heads=2, dim=8, compress=False, sparse_gradients=sparse)
    return grafted(bank, fallback=fallback)


def train(
    model: Any, bank: Any, path: Path, *, rowwise: bool = True, resume: str | None = None, **options: Any
) -> tuple[Trainer, Norms]:
    settings: dict[str, Any] = {
        "output_dir": str(path),
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "report_to": [],
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 0,
    }
    groups = optimizer_groups(model, lr=1e-2, weight_decay=0.1, rowwise=rowwise)
    optimizer = (RowwiseAdamW if rowwise else torch.optim.AdamW)(groups)
    norms = Norms(model)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(**{**settings, **options}),
        train_dataset=Rows(),
        data_collator=GraftCollator(bank),
        optimizers=(optimizer, None),
        callbacks=[norms],
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer, norms


def parameters(model: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_same(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], **tolerance: float) -> None:
    for name, value in got.items():
        torch.testing.assert_close(value, expected[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_sparse_gradients_are_clipped_with_all_others(accumulation: int, bank: Any, tmp_path: Path) -> None:
    options = {"max_grad_norm": 0.05, "gradient_accumulation_steps": accumulation}
    models = {sparse: model_with(bank, sparse=sparse) for sparse in (True, False)}
    found = {sparse: train(model, bank, tmp_path, **options)[1] for sparse, model in models.items()}
    assert found[True].layouts == {torch.strided, torch.sparse_coo}
    assert found[False].layouts == {torch.strided}
    for norms in found.values():
        assert norms.norms == pytest.approx([0.05] * 4, rel=1e-3)
    assert_same(parameters(models[True]), parameters(models[False]), atol=1e-5, rtol=1e-4)


def test_groups_keep_their_rates_under_the_trainers_schedule(bank: Any, tmp_path: Path) -> None:
    model = model_with(bank, sparse=False)
    before = parameters(model)
    trainer, _ = train(model, bank, tmp_path, rowwise=False, lr_scheduler_type="linear", max_steps=4)
    rates = {group["name"]: group["lr"] for group in trainer.optimizer.param_groups}
    initial = {group["name"]: group["initial_lr"] for group in trainer.optimizer.param_groups}
    assert initial["tables"] == pytest.approx(5 * initial["decay"])
    assert rates == pytest.approx(dict.fromkeys(rates, 0.0))
    moved = {name for name, value in parameters(model).items() if not torch.equal(value, before[name])}
    assert any("fallback.table" in name for name in moved)


@pytest.mark.parametrize("sparse", [False, True])
def test_a_resumed_run_goes_on_exactly(sparse: bool, bank: Any, tmp_path: Path) -> None:
    model = model_with(bank, sparse=sparse)
    train(model, bank, tmp_path, save_strategy="steps", save_steps=2)
    resumed = model_with(bank, sparse=sparse)
    trainer, _ = train(resumed, bank, tmp_path, resume=str(tmp_path / "checkpoint-2"))
    assert_same(parameters(resumed), parameters(model))
    for layer in graft_layers(resumed)["default"].values():
        state = trainer.optimizer.state[layer.fallback.table.weight]
        assert state["row_square_sum"].shape == (layer.fallback.num_slots, 1)
        assert "exp_avg" not in state
        assert state["step"] == 4


def test_the_trainers_own_optimizer_takes_dense_tables(bank: Any, tmp_path: Path) -> None:
    model = model_with(bank, sparse=False)
    before = parameters(model)
    arguments = TrainingArguments(
        str(tmp_path), max_steps=2, report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True
    )
    Trainer(model=model, args=arguments, train_dataset=Rows(), data_collator=GraftCollator(bank)).train()
    moved = {name for name, value in parameters(model).items() if not torch.equal(value, before[name])}
    assert any("fallback.table" in name for name in moved)


def test_sparse_tables_say_no_to_plain_adamw(bank: Any) -> None:
    model = model_with(bank, sparse=True)
    optimizer = torch.optim.AdamW(model.parameters())
    ids = Rows().rows[:2]
    model(ids, labels=ids).loss.backward()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
