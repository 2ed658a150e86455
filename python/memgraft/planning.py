"""How large a bank to build: what each budget of keys reaches on text that was not mined, and what it weighs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from memgraft.corpus import Corpus
from memgraft.errors import ArgumentError
from memgraft.index import NgramIndex
from memgraft.keyset import KeySet
from memgraft.mining import budgets_by_order, coverage, mine
from memgraft.progress import Progress, callback

FARTHEST = 16
"""Times the keys that were measured up to which `budget_for` estimates."""


@dataclass(frozen=True, kw_only=True)
class BudgetPoint:
    """One budget of keys."""

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


def plan_budgets(
    corpus: Corpus,
    budgets: Sequence[int],
    *,
    orders: Sequence[int] = (2, 3, 4),
    held_out: float = 0.05,
    seed: int = 0,
    min_count: int = 2,
    vocab_size: int | None = None,
    memory: int | str = "4GiB",
    threads: int | None = None,
    progress: Progress | bool | None = None,
) -> tuple[KeySet, list[BudgetPoint]]:
    """Mines the largest budget from the training part and measures every budget on the held-out part.

    The keys of a smaller budget are the most frequent of those of a larger one, so one mining serves all, exactly.

    Args:
        corpus: the tokens; documents are held out of them as by :meth:`Corpus.split`.
        budgets: keys in all, in equal shares per order.
        orders: lengths of keys.
        held_out: share of documents to measure on.
        seed: of the choice of these documents.
        min_count: fewest occurrences of a key.
        vocab_size: every token is smaller than this; default: that of the corpus's tokenizer.
        memory: working memory of the mining.
        threads: default: every core.
        progress: True for bars, or called with (stage, done, total).

    Returns:
        The keys of the largest budget, and a point for each budget, ascending.

    Raises:
        ArgumentError: no budget, or one below the number of orders.
        CorpusError: fewer than two documents.
    """
    progress = callback(progress)
    wanted = sorted(set(budgets))
    if not wanted:
        raise ArgumentError("budgets: expected at least one number of keys, got none")
    shares = [budgets_by_order(orders, budget) for budget in wanted]
    train, held = corpus.split(held_out=held_out, seed=seed)
    keys = mine(
        train,
        orders,
        wanted[-1],
        min_count=min_count,
        vocab_size=vocab_size,
        memory=memory,
        threads=threads,
        progress=progress,
    )
    arrays = keys.arrays()
    lengths = np.diff(arrays.offsets.astype(np.int64))
    rank = np.zeros(len(keys), np.int64)
    for order in keys.orders:
        rank[lengths == order] = np.arange(np.count_nonzero(lengths == order))
    points = []
    for budget, share in zip(wanted, shares, strict=True):
        limit = np.zeros(max(share) + 1, np.int64)
        for order, most in share.items():
            limit[order] = len(keys) if most is None else most
        chosen = rank < limit[lengths]
        index = NgramIndex.build(keys.select(chosen))
        facts = coverage(index, held, threads=threads)
        points.append(
            BudgetPoint(
                budget=budget,
                num_keys=len(index),
                min_count={
                    order: int(arrays.counts[chosen & (lengths == order)].min()) for order in index.num_keys_by_order
                },
                coverage=facts["coverage"],
                hits=facts["hits"],
                positions=facts["positions"],
                index_bytes=index.stats()["bytes"],
            )
        )
        if progress is not None:
            progress("budgets", len(points), len(wanted))
    return keys, points


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
