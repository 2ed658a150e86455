"""Held-out loss, overall and apart for positions with a hit and with a miss."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from memgraft.bank import Bank
from memgraft.data import MemoryBatch
from memgraft.experiments.windows import SEGMENTS_COLUMN, TokenWindows

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
    progress: Callable[[int, int], None] | None = None,
) -> HeldOutLoss:
    """Evaluate ``chosen`` windows; the model's training mode is put back afterwards.

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
    try:
        for start in range(0, len(chosen), batch_size):
            examples = [windows[window] for window in chosen[start : start + batch_size]]
            tokens_BT = torch.stack([example["input_ids"] for example in examples])
            segments_BT = torch.stack([example[SEGMENTS_COLUMN] for example in examples])
            memory = MemoryBatch.look_up(bank, tokens_BT, segments_BT)
            extra = {"memgraft": memory.to(device)} if grafted else {}
            context = torch.autocast(device.type, dtype=torch.bfloat16) if bf16 else contextlib.nullcontext()
            with torch.no_grad(), context:
                logits = model(input_ids=tokens_BT.to(device), use_cache=False, **extra).logits
            losses_BT = F.cross_entropy(
                logits[:, :-1].float().transpose(1, 2), tokens_BT[:, 1:].to(device), reduction="none"
            ).cpu()
            hit_BT = memory.hit[:, :-1]
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
    )


def spread_windows(windows: TokenWindows, at_most: int) -> list[int]:
    """Numbers of windows spread evenly over the corpus, at most ``at_most`` (0: all)."""
    if at_most == 0 or at_most >= len(windows):
        return list(range(len(windows)))
    return [int(place) for place in np.linspace(0, len(windows) - 1, at_most).round()]
