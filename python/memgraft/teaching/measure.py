"""What a memory makes a model say: recall of statements, and damage to neutral text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from memgraft.bank import Memory
from memgraft.teaching.facts import Spoken
from memgraft.teaching.reading import Grafted, Padded, log_probs

_AT_ONCE = 16
_MOST_LOGITS = 1 << 27
"""Logits of one call on neutral text, 512 MiB: models of 256 thousand tokens get fewer windows at once."""


@torch.no_grad()
def recall(grafted: Grafted, memory: Memory | None, statements: Sequence[Spoken]) -> dict[str, Any]:
    """How well the model says the completions; ``memory`` None is the model without any graft.

    Returns:
        ``num`` prompts; ``exact``: share whose whole completion is what greedy decoding says; ``log_prob``: mean
        log-probability (nats) of a completion's tokens. The last two are ``None`` where there is no prompt.
    """
    exact: list[bool] = []
    sums: list[tuple[float, int]] = []
    for start in range(0, len(statements), _AT_ONCE):
        part = statements[start : start + _AT_ONCE]
        padded = Padded.of([one.ids for one in part], grafted.eos_ids)
        # Greedy decoding says the completion just where each of its tokens is the likeliest after those before it.
        found, best = log_probs(grafted.logits(padded, memory), part)
        exact += best.all(1).tolist()
        sums += list(zip(found.sum(1).tolist(), [len(one.completion) for one in part], strict=True))
    if not statements:
        return {"num": 0, "exact": None, "log_prob": None}
    total = sum(number for _, number in sums)
    return {"num": len(exact), "exact": sum(exact) / len(exact), "log_prob": sum(value for value, _ in sums) / total}


@torch.no_grad()
def damage(
    grafted: Grafted, base: Memory, memory: Memory, windows: Sequence[tuple[int, ...]]
) -> dict[str, float | int | None]:
    """How far ``memory`` moves the model's answers on neutral text away from what it says with ``base``.

    Returns:
        ``tokens``; ``kl``: KL divergence of the two answers, nats a token, exactly 0 where no new key matches;
        ``changed``: share of positions with another match; ``loss`` and ``base_loss``, nats a token.
    """
    sums = {"kl": 0.0, "changed": 0.0, "loss": 0.0, "base_loss": 0.0}
    num_tokens = num_predicted = 0
    longest = max(map(len, windows), default=1)
    at_once = max(1, min(_AT_ONCE, _MOST_LOGITS // (longest * base.vocab_size)))
    for start in range(0, len(windows), at_once):
        padded = Padded.of(windows[start : start + at_once], grafted.eos_ids)
        real = padded.mask > 0
        before, after = grafted.staged(padded, base), grafted.staged(padded, memory)
        # Rows of a stack's base keep their numbers, so another number is another match.
        changed = (before.rows != after.rows) & real
        num_tokens += int(real.sum())
        num_predicted += int(real[:, 1:].sum())
        sums["changed"] += float(changed.sum())
        old = grafted.logits(padded, before)
        # A call without another match is the same call.
        new = grafted.logits(padded, after) if changed.any() else old
        for row, num in enumerate(padded.mask.sum(1).tolist()):
            targets = padded.ids[row, 1:num].to(old.device)
            base_loss = float(F.cross_entropy(old[row, : num - 1], targets, reduction="sum"))
            sums["base_loss"] += base_loss
            if not changed[row].any():
                sums["loss"] += base_loss
                continue
            sums["loss"] += float(F.cross_entropy(new[row, : num - 1], targets, reduction="sum"))
            now, then = new[row, :num].log_softmax(-1), old[row, :num].log_softmax(-1)
            sums["kl"] += float(F.kl_div(now, then, log_target=True, reduction="sum"))
    if not windows:
        return {"tokens": 0, "kl": None, "changed": None, "loss": None, "base_loss": None}
    per = {"kl": num_tokens, "changed": num_tokens, "loss": num_predicted, "base_loss": num_predicted}
    return {"tokens": num_tokens, **{name: value / per[name] for name, value in sums.items()}}
