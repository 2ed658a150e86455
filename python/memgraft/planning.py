"""How large a bank to build: what each budget of keys reaches on text that was not mined, and what it weighs."""

import functools
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from memgraft.arguments import refuse_paths
from memgraft.corpus import Corpus
from memgraft.distinct import distinct
from memgraft.errors import ArgumentError
from memgraft.index import NgramIndex
from memgraft.keyset import KeySet
from memgraft.mining import budgets_by_order, coverage, mine
from memgraft.mining.options import GAIN_CANDIDATES, POLICIES, Policy, choice
from memgraft.progress import Progress, callback

FARTHEST = 16
"""Times the keys that were measured up to which `budget_for` estimates."""


@dataclass(frozen=True, kw_only=True)
class BudgetPoint:
    """One budget of keys, chosen by one policy."""

    budget: int
    num_keys: int
    """Keys mined; fewer than the budget where an order has no more that are frequent."""
    min_count: dict[int, int]
    """Count of the rarest key of each order."""
    coverage: float
    """Share of held-out positions with a match; the others are left to the fallback."""
    hits: dict[int, int]
    """Held-out positions by the order of their longest match."""
    positions: int
    """Held-out positions."""
    index_bytes: int
    """Bytes of the file ``index.mgi``."""
    policy: Policy = "shares"
    rows_per_token: Mapping[int, float] = field(default_factory=dict)
    """Different rows of a batch of held-out text over its tokens, by tokens of the batch."""


def plan_budgets(
    corpus: Corpus,
    budgets: Sequence[int],
    *,
    orders: Sequence[int] = (2, 3, 4),
    policies: Sequence[Policy] = ("shares",),
    held_out: float = 0.05,
    seed: int = 0,
    min_count: int = 2,
    vocab_size: int | None = None,
    memory: int | str = "4GiB",
    temporary: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    progress: Progress | bool | None = None,
) -> tuple[KeySet, list[BudgetPoint]]:
    """Mines the largest budget from the training part and measures every budget on the held-out part.

    The keys of a smaller budget are the first of those of a larger one by the policy's measure, so one mining serves
    every budget of a policy, and one both ``"count"`` and ``"gain"``, exactly.

    Args:
        corpus: the tokens; documents are held out of them as by :meth:`Corpus.split`.
        budgets: keys in all.
        orders: lengths of keys.
        policies: which keys a budget is filled with, as for :func:`memgraft.mine`.
        held_out: share of documents to measure on.
        seed: of the choice of these documents.
        min_count: fewest occurrences of a key.
        vocab_size: every token is smaller than this; default: that of the corpus's tokenizer.
        memory: working memory of the mining.
        temporary: folder for what outgrows it; default: ``$TMPDIR``.
        threads: default: every core.
        progress: True for bars, or called with (phase, done, total).

    Returns:
        The keys of the largest budget by the first policy, and a point for each policy and budget: policies in the
        order given, budgets ascending.

    Raises:
        ArgumentError: no budget, one that is too small (``"shares"`` wants a key for each order), or an unknown policy.
        CorpusError: fewer than two documents.
    """
    refuse_paths(corpus=corpus)
    progress = callback(progress)
    wanted = sorted(set(budgets))
    if not wanted:
        raise ArgumentError("budgets: expected at least one number of keys, got none")
    asked = list(dict.fromkeys(policies))
    if not asked or not set(asked) <= set(POLICIES):
        raise ArgumentError(f"policies: expected some of {', '.join(POLICIES)}, got {', '.join(asked) or 'none'}")
    for budget, policy in itertools.product(wanted, asked):
        choice(orders, budget, min_count, policy=policy)
    train, held = corpus.split(held_out=held_out, seed=seed)

    @functools.cache
    def mined(policy: Policy, budget: int) -> KeySet:
        given: dict[str, Any] = {"min_count": min_count, "vocab_size": vocab_size, "memory": memory, "threads": threads}
        return mine(train, orders, budget, policy=policy, temporary=temporary, sample=False, progress=progress, **given)

    def candidates(policy: Policy) -> KeySet:
        if policy in ("shares", "documents"):
            return mined(policy, wanted[-1])
        # What "gain" chooses among holds what "count" keeps.
        return mined("count", wanted[-1] * (GAIN_CANDIDATES if "gain" in asked else 1))

    first, points = None, []
    for policy in asked:
        chosen = _smaller(candidates(policy), policy, orders)
        for budget in wanted:
            keys = chosen(budget)
            points.append(_measured(keys, held, policy, budget, threads))
            if progress is not None:
                progress("budgets", len(points), len(wanted) * len(asked))
        first = keys if first is None else first
    assert first is not None
    return first, points


def _smaller(keys: KeySet, policy: Policy, orders: Sequence[int]) -> Callable[[int], KeySet]:
    """Gives the keys of a budget out of those that a larger one has kept."""
    arrays = keys.arrays()
    lengths = np.diff(arrays.offsets.astype(np.int64))
    rank = np.arange(len(keys))
    if policy == "shares":
        for order in keys.orders:
            rank[lengths == order] = np.arange(np.count_nonzero(lengths == order))
    elif policy == "documents":
        # Rows are in order of (count, key) already.
        rank[np.argsort(~arrays.documents, kind="stable")] = np.arange(len(keys))

    def choose(budget: int) -> KeySet:
        if policy == "gain":
            some = keys.select(np.arange(min(budget * GAIN_CANDIDATES, len(keys))))
            return some.select_by_gain(min(budget, len(some)))
        if policy != "shares":
            return keys.select(rank < budget)
        limit = np.zeros(max(orders) + 1, np.int64)
        for order, most in budgets_by_order(orders, budget).items():
            limit[order] = len(keys) if most is None else most
        return keys.select(rank < limit[lengths])

    return choose


def _measured(keys: KeySet, held: Corpus, policy: Policy, budget: int, threads: int | None) -> BudgetPoint:
    index = NgramIndex.build(keys)
    facts = coverage(index, held, threads=threads)
    arrays = keys.arrays()
    lengths = np.diff(arrays.offsets.astype(np.int64))
    return BudgetPoint(
        budget=budget,
        num_keys=len(keys),
        min_count={order: int(arrays.counts[lengths == order].min()) for order in index.num_keys_by_order},
        coverage=facts["coverage"],
        hits=facts["hits"],
        positions=facts["positions"],
        index_bytes=index.stats()["file_bytes"],
        policy=policy,
        rows_per_token=facts["unique_rows_per_token"],
    )


def budget_for(keys: KeySet, corpus: Corpus, target: float, *, sample: int = 1 << 21) -> int | None:
    """About how many keys would cover the share ``target`` of ``corpus``; ``None`` where nothing measured says so.

    Coverage goes on with the logarithm of the budget as it has between a quarter of ``keys`` and all of them, which
    holds for a few steps: beyond `FARTHEST` times ``keys`` there is no estimate.

    Args:
        keys: the key set; its most frequent quarter stands for a smaller budget.
        corpus: text the keys were not mined from; its first ``sample`` tokens are looked up.
        target: wanted coverage, 0 to 1.
        sample: tokens to look up at most.

    Raises:
        TokenError: a token is outside the vocabulary of the keys.
    """
    refuse_paths(keys=keys, corpus=corpus)
    if len(keys) < 4:
        return None
    tokens = corpus.tokens(0, min(corpus.num_tokens, sample))
    starts = corpus.document_starts
    bounds = np.unique(np.concatenate(([0], starts[starts < len(tokens)], [len(tokens)]))).astype(np.int64)

    def reached(some: KeySet) -> float:
        rows, _ = NgramIndex.build(some).lookup(tokens, cu_seqlens=bounds)
        return float(np.mean(rows >= 0))

    quarter, whole = reached(keys.select(np.arange(len(keys) // 4))), reached(keys)
    rise = (whole - quarter) / np.log(4)
    if rise < 1e-3:
        return None
    times = (target - whole) / rise / np.log(FARTHEST)
    return int(len(keys) * FARTHEST**times) if times <= 1 else None


@dataclass(frozen=True, kw_only=True)
class HotRowsPoint:
    """What the first rows of a bank spare the bus where they stay on the device; means over batches of text."""

    num_rows: int
    """Rows that stay there, at most those of the bank."""
    batch_tokens: int
    """Tokens of a batch; fewer than asked where the text has no more."""
    rows_per_batch: float
    """Different rows of a batch."""
    hot_per_batch: float
    """Those of them that are on the device already."""


def hot_rows(
    index: NgramIndex,
    corpus: Corpus,
    counts: Sequence[int],
    *,
    batch_tokens: int = 32_768,
    sample: int = 1 << 21,
    threads: int | None = None,
) -> list[HotRowsPoint]:
    """How many rows of a batch ``prefetch(..., hot_rows=N)`` need not move, by the frequencies of ``corpus``.

    A batch is so many tokens in a row, and sees none before its first. A row counts once a batch, as staging moves it.
    Batches lie evenly over the corpus.

    Args:
        index: the index of the bank, whose rows are in order of falling count.
        corpus: text like that of the training.
        counts: rows to keep on the device.
        batch_tokens: tokens that are staged at once: of a micro-batch, where a step has several.
        sample: tokens to look up at most, but one batch at least.
        threads: for the lookup; default: every core.

    Returns:
        A point for each of ``counts``, ascending.

    Raises:
        ArgumentError: a negative count, a batch without tokens, or an empty corpus.
        TokenError: a token is outside the vocabulary of the keys.
    """
    wanted = sorted(set(counts))
    if wanted and wanted[0] < 0:
        raise ArgumentError(f"hot_rows {wanted[0]}: expected rows to keep on the device, from 0")
    if batch_tokens < 1:
        raise ArgumentError(f"batch_tokens {batch_tokens}: expected at least 1 token")
    size = min(batch_tokens, corpus.num_tokens)
    if size == 0:
        raise ArgumentError(f"{corpus.paths[0]}: expected tokens to count rows of, found none")
    batches = max(1, min(corpus.num_tokens, sample) // size)
    starts, total = corpus.document_starts, 0
    hot = np.zeros(len(wanted), np.int64)
    for first in np.linspace(0, corpus.num_tokens - size, batches).astype(np.int64):
        inner = starts[(starts > first) & (starts < first + size)].astype(np.int64) - first
        bounds = np.concatenate(([0], np.unique(inner), [size]))
        rows, _ = index.lookup(corpus.tokens(int(first), int(first) + size), cu_seqlens=bounds, threads=threads)
        rows = distinct(rows[rows >= 0])
        total += len(rows)
        hot += np.searchsorted(rows, wanted)
    return [
        HotRowsPoint(
            num_rows=min(count, len(index)),
            batch_tokens=size,
            rows_per_batch=total / batches,
            hot_per_batch=int(found) / batches,
        )
        for count, found in zip(wanted, hot, strict=True)
    ]
