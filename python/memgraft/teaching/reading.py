"""Calls of a grafted model on statements and windows, with the memory said in each call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memgraft.bank import Memory
from memgraft.corpus import Corpus
from memgraft.data import MemoryBatch
from memgraft.data.segments import from_batch
from memgraft.index import NgramIndex
from memgraft.teaching.facts import Spoken
from memgraft.teaching.keys import blocks


@dataclass(frozen=True)
class Padded:
    """Token sequences of one call, padded on the right.

    Attributes:
        ids: (B, T) int64.
        mask: (B, T) int64, 0 at padding.
        segments: (B, T), -1 at padding.
    """

    ids: Tensor
    mask: Tensor
    segments: Tensor

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]], eos_ids: Sequence[int]) -> Padded:
        """``sequences`` side by side."""
        width = max(map(len, sequences))
        ids = torch.zeros(len(sequences), width, dtype=torch.int64)  # any token does where the mask is 0
        mask = torch.zeros_like(ids)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = torch.tensor(sequence)
            mask[row, : len(sequence)] = 1
        segments = from_batch({"input_ids": ids, "attention_mask": mask}, eos_id=list(eos_ids) or None)
        return cls(ids, mask, segments)


@dataclass(frozen=True)
class Grafted:
    """A grafted model and what a call of it needs.

    Attributes:
        model: the model, in evaluation mode.
        name: the graft's name.
        eos_ids: tokens that end a segment.
        device: where the model is.
    """

    model: nn.Module
    name: str
    eos_ids: tuple[int, ...]
    device: torch.device

    def logits(self, padded: Padded, memory: MemoryBatch | Memory | None) -> Tensor:
        """Float32 logits (B, T, vocabulary); ``memory`` None runs without any graft."""
        given: Any = False
        if memory is not None:
            batch = memory if isinstance(memory, MemoryBatch) else self.staged(padded, memory)
            given = {self.name: batch}
        ids, mask = padded.ids.to(self.device), padded.mask.to(self.device)
        logits: Tensor = self.model(ids, attention_mask=mask, use_cache=False, memgraft=given).logits
        return logits.float()

    def staged(self, padded: Padded, memory: Memory) -> MemoryBatch:
        """What ``memory`` has for a call."""
        return MemoryBatch.look_up(memory, padded.ids, padded.segments).stage(memory)


class SlotReader:
    """Reads a base under new keys whose values are a tensor that learns.

    Args:
        base: the base.
        index: the base's index and that of the new keys, as one.
        slots: int64, the new rows' places in that tensor.
    """

    def __init__(self, base: Memory, index: NgramIndex, slots: np.ndarray) -> None:
        self._base, self._index = base, index
        self._first, self._slots = base.num_rows, torch.from_numpy(slots)

    def matches(self, padded: Padded) -> tuple[Tensor, Tensor]:
        """Rows int32 and orders uint8, (B, T) each; rows from ``base.num_rows`` on are new."""
        rows, orders = self._index.lookup(padded.ids.numpy(), segments=padded.segments.numpy(), unknown="miss")
        return torch.from_numpy(rows), torch.from_numpy(orders)

    def batch(self, padded: Padded, values_STV: Tensor) -> MemoryBatch:
        """The call's memory; gradients reach ``values_STV``, (places, taps, value_dim)."""
        rows, orders = self.matches(padded)
        new = rows >= self._first
        staged = self._base.stage(rows=torch.where(new, -1, rows).numpy(), orders=orders.numpy())
        old = torch.from_numpy(staged.floats()).to(values_STV.device)
        used, place = torch.unique(self._slots[rows[new].long() - self._first], return_inverse=True)
        inverse = torch.from_numpy(staged.inverse).clone()
        inverse[new] = (len(old) + place).to(inverse.dtype)
        return MemoryBatch(
            rows=rows,
            orders=orders,
            segments=padded.segments.int(),
            inverse=inverse,
            misses=(inverse.flatten() < 0).nonzero().squeeze(1),
            values=torch.cat([old, values_STV[used.to(values_STV.device)]]),
        )


def log_probs(logits: Tensor, statements: Sequence[Spoken]) -> tuple[Tensor, Tensor]:
    """Log-probability of each statement's completion tokens, padded with 0, and whether each is the likeliest.

    Returns:
        (B, longest completion) float32 and bool, True at padding.
    """
    width = max(len(statement.completion) for statement in statements)
    found, best = [], []
    for row, statement in enumerate(statements):
        at = logits[row, statement.targets.start : statement.targets.stop]
        wanted = torch.tensor(statement.completion, device=at.device)
        pad = (0, width - len(wanted))
        found.append(F.pad(at.log_softmax(-1).gather(1, wanted[:, None]).squeeze(1), pad))
        best.append(F.pad(at.argmax(-1) == wanted, pad, value=True))
    return torch.stack(found), torch.stack(best)


def neutral_windows(
    corpus: Corpus, index: NgramIndex, window: int, most: int, num_tokens: int, seed: int
) -> NeutralWindows:
    """Windows of ``corpus`` that new keys match, and others.

    Args:
        corpus: the text.
        index: the new keys.
        window: tokens of a window; shorter at the end of a document.
        most: windows of each kind.
        num_tokens: tokens of ``corpus`` to look at.
        seed: chooses among them.
    """
    generator = np.random.default_rng(seed)
    hit: list[tuple[int, ...]] = []
    rest: list[tuple[int, ...]] = []
    for tokens, edges in blocks(corpus, num_tokens):
        rows, _ = index.lookup(tokens, cu_seqlens=edges, unknown="miss")
        for begin, end in zip(edges[:-1].astype(np.int64), edges[1:].astype(np.int64), strict=True):
            for start in range(int(begin), int(end), window):
                stop = min(start + window, int(end))
                if stop - start > 1:
                    (hit if (rows[start : stop - 1] >= 0).any() else rest).append(tuple(tokens[start:stop].tolist()))
    chosen = [
        [windows[number] for number in sorted(generator.permutation(len(windows))[:most].tolist())]
        for windows in (hit, rest)
    ]
    return NeutralWindows(chosen[0], chosen[1], len(hit))


@dataclass(frozen=True)
class NeutralWindows:
    """Windows of neutral text, as token tuples.

    Attributes:
        matched: those in which a new key matches (within the window); at most as many as asked for.
        plain: others.
        num_matched: how many of the first kind there are in all.
    """

    matched: list[tuple[int, ...]]
    plain: list[tuple[int, ...]]
    num_matched: int
