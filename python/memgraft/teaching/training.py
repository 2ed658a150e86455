"""Improves the new rows by gradient through the frozen model, in steps that can be taken up again."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from memgraft.bank import Memory
from memgraft.errors import FormatError, GraftError
from memgraft.progress import Progress
from memgraft.system import written_beside
from memgraft.teaching.facts import Spoken
from memgraft.teaching.reading import Grafted, Padded, SlotReader, log_probs
from memgraft.teaching.settings import TeachSettings

_SAVE_EVERY = 25
_NEUTRAL_AT_ONCE = 4
_BETAS = (0.9, 0.99)
_EPS = 1e-8


@dataclass
class State:
    """Where the training is.

    Attributes:
        step: steps done.
        delta: what was added to the donor's states, in units of each row's root mean square, (places, taps, value_dim).
        mean: Adam's first moment.
        square: Adam's second moment.
        worst: log-probability of the unlikeliest completion token of each statement, when it was last seen.
    """

    step: int
    delta: Tensor
    mean: Tensor
    square: Tensor
    worst: Tensor
    losses: list[float] = field(default_factory=list)

    @classmethod
    def fresh(cls, shape: Sequence[int], num_statements: int) -> State:
        """The beginning."""
        delta, mean, square = (torch.zeros(tuple(shape)) for _ in range(3))
        return cls(0, delta, mean, square, torch.full((num_statements,), -math.inf))

    def save(self, path: Path) -> None:
        """Writes beside, fsyncs, renames."""
        tensors = {"delta": self.delta, "mean": self.mean, "square": self.square, "worst": self.worst}
        facts = {"step": str(self.step), "losses": json.dumps(self.losses)}
        with written_beside(path) as beside:
            save_file(tensors, str(beside), metadata=facts)

    @classmethod
    def load(cls, path: Path) -> State:
        """Reads what `save` wrote.

        Raises:
            FormatError: damaged.
        """
        try:
            with safe_open(str(path), "pt") as file:
                facts = file.metadata()
            tensors = load_file(str(path))
            losses = [float(loss) for loss in json.loads(facts["losses"])]
            return cls(int(facts["step"]), **tensors, losses=losses)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise FormatError(f"{path}: damaged: {error}; remove {path.parent} and teach again") from error


def improve(
    grafted: Grafted,
    base: Memory,
    reader: SlotReader,
    start: np.ndarray,
    statements: Sequence[Spoken],
    held: Sequence[tuple[int, ...]],
    settings: TeachSettings,
    path: Path,
    progress: Progress | None,
) -> tuple[np.ndarray, State]:
    """Trains the places' values; nothing else changes.

    Minimised is the mean negative log-probability of the completions' tokens, plus ``keep_weight`` times the mean KL
    divergence (nats a token) from what the base says on windows of neutral text that the new keys match.

    Args:
        grafted: the model.
        base: the memory that the new keys lie on.
        reader: finds and mixes their rows.
        start: float32 (places, taps, value_dim), the donor's states.
        statements: what is taught.
        held: windows of neutral text with matches.
        settings: how.
        path: the state's file: read if it is there, written every 25 steps and when the training is interrupted.
        progress: called as ("teach", step, steps).

    Returns:
        The values, float32, and the last state.

    Raises:
        GraftError: no row has a gradient.
        FormatError: the state's file is damaged.
    """
    initial = torch.from_numpy(start)
    scale = initial.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-6)
    state = State.load(path) if path.exists() else State.fresh(start.shape, len(statements))
    wanted = math.log(settings.target)
    if progress is not None:
        progress("teach", state.step, settings.steps)
    try:
        while state.step < settings.steps and not bool((state.worst >= wanted).all()):
            generator = np.random.default_rng([settings.seed, state.step])
            delta = state.delta.clone().requires_grad_()
            loss, worst = _loss(
                grafted, base, reader, initial + scale * delta, statements, held, settings, generator, state
            )
            (gradient,) = torch.autograd.grad(loss, delta)
            if state.step == 0 and not gradient.any():
                raise GraftError(
                    f"graft {grafted.name!r}: no row changes what the model says: a graft with init='zero' writes "
                    "nothing before it is trained. Train it first"
                )
            state = _stepped(state, gradient, settings.learning_rate, worst, float(loss.detach()))
            if state.step % _SAVE_EVERY == 0:
                state.save(path)
            if progress is not None:
                progress("teach", state.step, settings.steps)
    finally:
        # Each step is a new state, so that an interrupted one is not there in part.
        state.save(path)
    return (initial + scale * state.delta).numpy(), state


def _loss(
    grafted: Grafted,
    base: Memory,
    reader: SlotReader,
    values_STV: Tensor,
    statements: Sequence[Spoken],
    held: Sequence[tuple[int, ...]],
    settings: TeachSettings,
    generator: np.random.Generator,
    state: State,
) -> tuple[Tensor, Tensor]:
    """The loss of one step, and the statements' worst tokens after looking at some of them again."""
    # The statements that are worst off, in a random order among those never seen.
    order = generator.permutation(len(statements))
    order = order[np.argsort(state.worst.numpy()[order], kind="stable")][: settings.batch_size]
    chosen = [statements[number] for number in sorted(order.tolist())]
    padded = Padded.of([statement.ids for statement in chosen], grafted.eos_ids)
    found, _ = log_probs(grafted.logits(padded, reader.batch(padded, values_STV)), chosen)
    real = torch.tensor([[column < len(one.completion) for column in range(found.shape[1])] for one in chosen])
    real = real.to(found.device)
    loss = -found[real].mean()
    worst = state.worst.clone()
    worst[torch.tensor(sorted(order.tolist()))] = found.detach().masked_fill(~real, 0.0).amin(1).cpu()
    if held and settings.keep_weight:
        picked = [held[number] for number in generator.permutation(len(held))[:_NEUTRAL_AT_ONCE]]
        loss = loss + settings.keep_weight * _drift(grafted, base, reader, values_STV, picked)
    return loss, worst


def _drift(
    grafted: Grafted, base: Memory, reader: SlotReader, values_STV: Tensor, windows: Sequence[tuple[int, ...]]
) -> Tensor:
    """Mean KL divergence from the base's answers on ``windows``, nats a token."""
    padded = Padded.of(windows, grafted.eos_ids)
    with torch.no_grad():
        before = grafted.logits(padded, base).log_softmax(-1)
    after = grafted.logits(padded, reader.batch(padded, values_STV)).log_softmax(-1)
    real = (padded.mask > 0).to(before.device)
    return F.kl_div(after[real], before[real], log_target=True, reduction="batchmean")


def _stepped(state: State, gradient: Tensor, rate: float, worst: Tensor, loss: float) -> State:
    """The state after one step of Adam (Kingma and Ba 2015); rows without a gradient so far stay as they are."""
    first, second = _BETAS
    number = state.step + 1
    mean = first * state.mean + (1 - first) * gradient
    square = second * state.square + (1 - second) * gradient.square()
    step = (mean / (1 - first**number)) / ((square / (1 - second**number)).sqrt() + _EPS)
    return State(number, state.delta - rate * step, mean, square, worst, [*state.losses, round(loss, 6)])


def facts_of(state: State) -> dict[str, Any]:
    """What a report says of a training."""
    return {"steps": state.step, "first_loss": state.losses[0] if state.losses else None, "loss": _last(state.losses)}


def _last(losses: list[float]) -> float | None:
    return losses[-1] if losses else None
