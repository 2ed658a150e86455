"""Held-out loss, overall and apart for positions with a hit and with a miss."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from memgraft.bank import Bank
from memgraft.data import KEY, MemoryBatch
from memgraft.experiments.windows import SEGMENTS_COLUMN, TokenWindows
from memgraft.integrations.transformers import disabled, record_telemetry

_DECILES = 10
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class HeldOutLoss:
    """Sums of the loss in nats by window. A predicted token counts as a hit when the position before it has a row.

    The same positions count as hits in every arm, also in those without memory.
    """

    hit_loss: FloatArray
    """float64 (W,)."""
    miss_loss: FloatArray
    hit_tokens: npt.NDArray[np.int64]
    """int64 (W,)."""
    miss_tokens: npt.NDArray[np.int64]

    groups: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """``by_order`` and ``by_count_decile``: loss and number of tokens of each group, see :func:`held_out_loss`."""

    per_token: npt.NDArray[np.float32] | None = None
    """Loss of each predicted token, float32 (W, T-1)."""

    @property
    def per_window(self) -> FloatArray:
        """Mean loss of each window, float64 (W,)."""
        window: FloatArray = (self.hit_loss + self.miss_loss) / (self.hit_tokens + self.miss_tokens)
        return window

    @property
    def overall(self) -> float:
        """Mean loss over all predicted tokens."""
        return float((self.hit_loss.sum() + self.miss_loss.sum()) / (self.hit_tokens.sum() + self.miss_tokens.sum()))

    def to_dict(self) -> dict[str, Any]:
        """Means and numbers of tokens for a result file; ``per_window`` for paired comparisons."""
        return {
            "overall": self.overall,
            "hit": _mean(self.hit_loss, self.hit_tokens),
            "miss": _mean(self.miss_loss, self.miss_tokens),
            "num_hit_tokens": int(self.hit_tokens.sum()),
            "num_miss_tokens": int(self.miss_tokens.sum()),
            **self.groups,
            "per_window": [round(float(loss), 6) for loss in self.per_window],
        }


def _mean(loss: FloatArray, tokens: npt.NDArray[np.int64]) -> float | None:
    total = int(tokens.sum())
    return float(loss.sum()) / total if total else None


def held_out_loss(
    model: nn.Module,
    windows: TokenWindows,
    chosen: Sequence[int],
    bank: Bank,
    *,
    grafted: bool,
    batch_size: int,
    bf16: bool,
    progress: Callable[[int, int], object] | None = None,
) -> HeldOutLoss:
    """Evaluates ``chosen`` windows; the model's training mode is put back afterwards.

    Besides windows, losses are summed by the order of the match before each token (0: a miss) and by the decile of its
    key's count: rows are in order of falling count, decile 1 holds the most frequent tenth of all keys.

    Args:
        model: the recipient, grafted or not.
        windows: the held-out text.
        chosen: numbers of the windows.
        bank: decides which positions are hits.
        grafted: whether the model takes the memory.
        batch_size: windows per forward.
        bf16: run under bfloat16 autocast.
        progress: called as ``progress(windows_done, windows_total)``.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    sums: list[torch.Tensor] = []
    every: list[npt.NDArray[np.float32]] = []
    by_order, by_decile = np.zeros((2, bank.index.max_order + 1)), np.zeros((2, _DECILES))
    decile_of_row = count_deciles(bank)
    try:
        for start in range(0, len(chosen), batch_size):
            examples = [windows[window] for window in chosen[start : start + batch_size]]
            tokens_BT = torch.stack([example["input_ids"] for example in examples])
            segments_BT = torch.stack([example[SEGMENTS_COLUMN] for example in examples])
            memory = MemoryBatch.look_up(bank, tokens_BT, segments_BT)
            extra = {KEY: memory.to(device)} if grafted else {}
            context = torch.autocast(device.type, dtype=torch.bfloat16) if bf16 else contextlib.nullcontext()
            with torch.no_grad(), context:
                logits = model(input_ids=tokens_BT.to(device), use_cache=False, **extra).logits
            losses_BT = F.cross_entropy(
                logits[:, :-1].float().transpose(1, 2), tokens_BT[:, 1:].to(device), reduction="none"
            ).cpu()
            hit_BT = memory.hit[:, :-1]
            every.append(losses_BT.numpy())
            flat = losses_BT.double().numpy().ravel()
            _add(by_order, memory.orders[:, :-1].cpu().numpy().ravel(), flat)
            _add(by_decile, decile_of_row[memory.rows[:, :-1].cpu()[hit_BT].numpy()], flat[hit_BT.numpy().ravel()])
            parts = [(losses_BT * mask).double().sum(1) for mask in (hit_BT, ~hit_BT)] + [
                hit_BT.sum(1),
                (~hit_BT).sum(1),
            ]
            sums.append(torch.stack([part.double() for part in parts], dim=1))
            if progress is not None:
                progress(min(start + batch_size, len(chosen)), len(chosen))
    finally:
        model.train(was_training)
    table = torch.cat(sums).numpy()
    return HeldOutLoss(
        hit_loss=table[:, 0],
        miss_loss=table[:, 1],
        hit_tokens=table[:, 2].astype(np.int64),
        miss_tokens=table[:, 3].astype(np.int64),
        per_token=np.concatenate(every),
        groups={
            "by_order": [{"order": order, **_group(*sums)} for order, sums in enumerate(by_order.T)],
            "by_count_decile": [{"decile": number + 1, **_group(*sums)} for number, sums in enumerate(by_decile.T)],
        },
    )


def memory_facts(
    model: nn.Module, windows: TokenWindows, chosen: Sequence[int], few: Sequence[int], bank: Bank, **evaluation: Any
) -> dict[str, Any]:
    """What a trained graft does in its recipient: the loss without it, and its gates and norms.

    Args:
        model: the grafted recipient.
        windows: the held-out text.
        chosen: windows of ``memory_off``: the loss with neither memory nor fallback, in weights trained with them.
        few: windows of ``gates``: figures of `Telemetry.summary`, by site, hits and misses.
        bank: decides which positions are hits.
        evaluation: what :func:`held_out_loss` takes.

    Returns:
        Both, by name.
    """
    with disabled(model):
        without = held_out_loss(model, windows, chosen, bank, **{**evaluation, "grafted": False})
    with record_telemetry(model) as telemetry:
        held_out_loss(model, windows, few, bank, **evaluation)
    gates = {name: round(value, 6) for name, value in telemetry.summary().items()}
    off = {name: without.to_dict()[name] for name in ("overall", "hit", "miss")}
    return {"memory_off": off, "gates": gates}


def count_deciles(bank: Bank) -> npt.NDArray[np.int64]:
    """Decile of every row by its key's count, int64 (R,): 0 for the most frequent tenth of keys; ties go by row."""
    counts = bank.keys.arrays(0, len(bank.keys)).counts.astype(np.int64)
    deciles = np.empty(len(counts), dtype=np.int64)
    deciles[np.argsort(-counts, kind="stable")] = np.arange(len(counts)) * _DECILES // max(1, len(counts))
    return deciles


def _add(sums: FloatArray, groups: npt.NDArray[Any], losses: FloatArray) -> None:
    """Adds losses and their number to the (2, G) sums of each group."""
    sums[0] += np.bincount(groups, weights=losses, minlength=sums.shape[1])
    sums[1] += np.bincount(groups, minlength=sums.shape[1])


def _group(loss: float, tokens: float) -> dict[str, Any]:
    return {"loss": float(loss / tokens) if tokens else None, "tokens": int(tokens)}


def spread_windows(windows: TokenWindows, at_most: int) -> list[int]:
    """Numbers of windows spread evenly over the corpus, at most ``at_most`` (0: all)."""
    if at_most == 0 or at_most >= len(windows):
        return list(range(len(windows)))
    return [int(place) for place in np.linspace(0, len(windows) - 1, at_most).round()]
