"""One arm, one seed, on the stock transformers ``Trainer``; resumable from its checkpoints."""

import contextlib
import errno
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from memgraft.errors import GraftError, MemgraftError, StorageError
from memgraft.experiments.arms import Arm
from memgraft.experiments.evaluate import held_out_loss, memory_facts, spread_windows
from memgraft.experiments.measures import LOSSES_NAME
from memgraft.experiments.models import (
    Material,
    added_parameters,
    arm_collator,
    build_arm,
    costs,
    plain_collator,
    start_fingerprint,
    training_flops,
)
from memgraft.experiments.recipe import Recipe, settings_fingerprint
from memgraft.experiments.tasks import run_tasks
from memgraft.experiments.training import trains
from memgraft.integrations.transformers import optimizer_groups
from memgraft.progress import Progress as Progress

__all__ = [
    "Material",
    "OrderRecorder",
    "Progress",
    "added_parameters",
    "arm_collator",
    "build_arm",
    "build_optimizer",
    "costs",
    "device_name",
    "disk_errors",
    "evaluation_batch",
    "plain_collator",
    "train_arm",
    "training_flops",
]

_LOGITS_AT_ONCE = 1 << 28
"""Logits of one forward of an evaluation on a GPU: 1 GiB in float32, of which the loss needs a few copies."""
_DISK_ERRORS = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG, errno.EIO)


class OrderRecorder:
    """A collator that hashes the tokens of every batch it makes, so that arms can be shown to read the same ones."""

    def __init__(self, inner: Callable[[list[Any]], Any]) -> None:
        self.inner = inner
        self.batches: list[str] = []

    def __call__(self, features: list[Any]) -> Any:
        """Collates and records."""
        batch = self.inner(features)
        self.batches.append(hashlib.sha256(batch["input_ids"].numpy().tobytes()).hexdigest())
        return batch


def evaluation_batch(recipe: Recipe, vocab_size: int) -> int:
    """Windows of one forward of an evaluation: on a GPU as many as their logits allow, else twice a training step's."""
    if not torch.cuda.is_available():
        return 2 * recipe.batch_size
    return max(1, _LOGITS_AT_ONCE // (recipe.seq_len * vocab_size))


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW with the graft's own groups: hash tables at five times the rate and without decay."""
    groups = optimizer_groups(model, lr=recipe.peak_lr, weight_decay=recipe.weight_decay)
    return torch.optim.AdamW(groups, lr=recipe.peak_lr, betas=(0.9, 0.95), fused=True)


class _TrainedBefore(Exception):
    """Ends a training whose checkpoint is of its last step: the trainer would take one step more."""


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Progress, token order and the held-out curve; the last two go to the trainer's log, which checkpoints keep."""

    def __init__(
        self,
        measure: Callable[[nn.Module], float],
        every: int,
        recorder: OrderRecorder,
        phase: str,
        progress: Progress | None,
    ) -> None:
        self.measure, self.every, self.recorder, self.phase, self.progress = measure, every, recorder, phase, progress
        self.measuring = 0.0
        self.first_step = 0
        self.began = 0.0
        self.before = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Notes where this process starts: batches before it were read by the one that was interrupted.

        Raises:
            _TrainedBefore: it was interrupted after the last step.
        """
        self.first_step = state.global_step
        self.before = max((entry.get("seconds", 0.0) for entry in state.log_history), default=0.0)
        self.began = time.perf_counter()
        if state.global_step >= args.max_steps:
            raise _TrainedBefore

    def on_step_end(self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **_: Any) -> None:
        """Reports the step; measures the curve where a point is due."""
        assert model is not None
        batch = self.recorder.batches[state.global_step - self.first_step - 1]
        state.log_history.append({"step": state.global_step, "batch": batch})
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            started = time.perf_counter()
            seconds = round(self.before + started - self.began - self.measuring, 3)
            loss = self.measure(model)
            state.log_history.append({"step": state.global_step, "held_out_loss": loss, "seconds": seconds})
            self.measuring += time.perf_counter() - started
        if self.progress is not None:
            self.progress(self.phase, state.global_step, state.max_steps)


def train_arm(
    arm: Arm,
    recipe: Recipe,
    material: Material,
    *,
    seed: int,
    steps: int,
    folder: Path,
    bf16: bool,
    progress: Progress | None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Trains one arm in ``folder`` (checkpoints below it; the newest one is taken up) and evaluates it.

    Returns:
        The trained model and its result.

    Raises:
        GraftError: the loss is not finite.
    """
    model = build_arm(arm, recipe, material, seed)
    began_from = start_fingerprint(arm, recipe, material, seed, model)
    recorder = OrderRecorder(arm_collator(arm, material))
    phase = f"train {arm.name}" + (f" (seed {seed})" if seed else "")
    size = evaluation_batch(recipe, material.vocab_size)
    evaluation: dict[str, Any] = {"grafted": arm.grafted, "batch_size": size, "bf16": bf16}
    final_windows, curve_size = recipe.evaluation(steps)
    curve_windows = spread_windows(material.held_out, curve_size)

    def measure(current: nn.Module) -> float:
        return held_out_loss(current, material.held_out, curve_windows, material.bank, **evaluation).overall

    watch = _Watch(measure, max(1, steps // recipe.curve_points), recorder, phase, progress)
    checkpoints = folder / "checkpoints"
    cuda = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=steps,
        per_device_train_batch_size=recipe.batch_size,
        learning_rate=recipe.peak_lr,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, round(recipe.warmup * steps)),
        max_grad_norm=1.0,
        bf16=bf16,
        torch_compile=recipe.compile,
        use_cpu=not cuda,
        seed=seed,
        data_seed=seed,
        logging_steps=max(1, steps // 40),
        # The filter waits for the GPU at every step; a loss that is not finite ends the run below.
        logging_nan_inf_filter=False,
        # A checkpoint of a PEFT model holds the adapter alone; such an arm starts anew.
        save_strategy="no" if recipe.trained == "lora" else "steps",
        save_steps=max(1, steps // 4),
        save_total_limit=1,
        remove_unused_columns=False,
        dataloader_pin_memory=cuda,
        dataloader_drop_last=True,
        report_to="none",
        disable_tqdm=True,
        log_level="error",
    )
    resumed_from = _newest(checkpoints)
    started = time.perf_counter()
    if trains(model):
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=material.train,
            data_collator=recorder,
            optimizers=(build_optimizer(model, recipe), None),
            callbacks=[watch],
        )
        trainer.remove_callback(PrinterCallback)
        with disk_errors(checkpoints), contextlib.suppress(_TrainedBefore):
            trainer.train(resume_from_checkpoint=str(resumed_from) if resumed_from else None)
        history = trainer.state.log_history
    else:
        history = _at_rest(model.to("cuda" if cuda else "cpu"), measure, watch.every, steps)
    seconds = time.perf_counter() - started - watch.measuring
    evaluating = time.perf_counter()
    chosen = spread_windows(material.held_out, final_windows)
    final = held_out_loss(
        model,
        material.held_out,
        chosen,
        material.bank,
        **evaluation,
        progress=None if progress is None else lambda done, total: progress(f"evaluate {arm.name}", done, total),
    )
    evaluated = time.perf_counter() - evaluating
    if not final.overall < float("inf"):
        raise GraftError(f"arm {arm.name}, seed {seed}: the held-out loss is {final.overall}; lower the learning rate")
    memory: dict[str, Any] = {}
    if arm.grafted:
        memory = memory_facts(model, material.held_out, chosen, curve_windows, material.bank, **evaluation)
    steps_run = steps - (int(resumed_from.name.split("-")[1]) if resumed_from else 0)
    if not steps_run:
        steps_run, seconds = steps, watch.before
    if material.tasks is not None:
        memory["tasks"] = run_tasks(model, material.tasks, material.tokenizer, material.eos_id, recipe.batch_size)
    batches = [entry["batch"] for entry in history if "batch" in entry]
    assert final.per_token is not None
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / LOSSES_NAME, final.per_token)
    domains = {
        name: held_out_loss(
            model, windows, spread_windows(windows, final_windows), material.bank, **evaluation
        ).to_dict()
        for name, windows in material.domains.items()
    }
    result = {
        "arm": arm.name,
        "label": arm.label,
        "seed": seed,
        "steps": steps,
        "tokens": steps * recipe.tokens_per_step if trains(model) else 0,
        "seconds": round(seconds, 2),
        "tokens_per_second": round(steps_run * recipe.tokens_per_step / seconds, 1) if trains(model) else 0.0,
        "resumed": resumed_from is not None,
        "start_fingerprint": began_from,
        "order_fingerprint": settings_fingerprint(batches) if batches else None,
        "device": device_name(),
        "seconds_evaluating": round(watch.measuring + evaluated, 2),
        "costs": costs(arm, model, material),
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "train_curve": [[entry["step"], entry["loss"]] for entry in history if "loss" in entry],
        "held_out_curve": [[entry["step"], entry["held_out_loss"]] for entry in history if "held_out_loss" in entry],
        "curve_seconds": [entry["seconds"] for entry in history if "held_out_loss" in entry],
        "held_out": {**final.to_dict(), **by_domain(domains)},
        **memory,
    }
    shutil.rmtree(checkpoints, ignore_errors=True)
    return model, result


def _at_rest(model: nn.Module, measure: Callable[[nn.Module], float], every: int, steps: int) -> list[dict[str, Any]]:
    """The history of an arm that has nothing to train: its loss stays what it is."""
    loss = measure(model)
    return [{"step": step, "held_out_loss": loss, "seconds": 0.0} for step in (min(every, steps), steps)]


def by_domain(domains: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The entry of a result for its domains; nothing where there are none."""
    if not domains:
        return {}
    return {
        "by_domain": [
            {"domain": name, "loss": found["overall"], "tokens": found["num_hit_tokens"] + found["num_miss_tokens"]}
            for name, found in domains.items()
        ]
    }


def device_name() -> str:
    """The device that arms train on: a GPU's own name, or ``"cpu"``."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turns what safetensors and torch raise on a full or read-only disk into one error with the way out.

    Raises:
        StorageError: something below ``folder`` could not be written.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        # safetensors quotes the system's words, torch only names its own writer.
        said = (*map(os.strerror, _DISK_ERRORS), "inline_container", "PytorchStreamWriter")
        if isinstance(error, MemgraftError) or not any(words in str(error) for words in said):
            raise
        raise StorageError(
            f"{folder}: a checkpoint cannot be written ({error}); free some space, then run the same command again: it "
            "goes on from the last whole checkpoint"
        ) from error


def _newest(checkpoints: Path) -> Path | None:
    """The newest complete checkpoint; the trainer writes its state file last but one, and a torn one is left out."""
    found = [path for path in checkpoints.glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    return max(found, key=lambda path: int(path.name.split("-")[1]), default=None)
