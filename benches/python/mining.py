"""Mining of orders 2 to 4 with counts and document frequencies: nanoseconds a token, beside counting in Python.

The reference counter does less (no document frequency, no memory budget) on a slice short enough for its dict.
"""

import collections
from typing import Any

import numpy as np
from contest import Contender, WrongAnswer, contest
from settings import Settings, main

import memgraft
from memgraft.corpus import CorpusWriter

ORDERS = (2, 3, 4)


def part_of(settings: Settings, name: str, num_tokens: int) -> memgraft.Corpus:
    """The first documents of the corpus, about ``num_tokens`` of them, as a corpus of its own."""
    corpus = memgraft.Corpus.open(settings.corpus)
    starts = corpus.document_starts
    last = int(np.searchsorted(starts, num_tokens))
    vocab_size = int(corpus.tokens(0, int(starts[min(last, corpus.num_documents)])).max()) + 1
    with CorpusWriter(settings.scratch_path / name, vocab_size=vocab_size) as writer:
        for document in range(min(last, corpus.num_documents)):
            writer.add(corpus.document(document))
        return memgraft.Corpus.open(writer.finish())


def count_in_python(documents: list[list[int]]) -> dict[tuple[int, ...], int]:
    """Every n-gram of the orders that occurs twice."""
    counts: collections.Counter[tuple[int, ...]] = collections.Counter()
    for document in documents:
        for order in ORDERS:
            counts.update(zip(*(document[lag:] for lag in range(order)), strict=False))
    return {key: count for key, count in counts.items() if count > 1}


def group(settings: Settings) -> dict[str, Any]:
    """A slice for the comparison, a larger part for the miner alone, in memory and spilling."""
    small = part_of(settings, "small", 200_000 if settings.quick else 2_000_000)
    large = part_of(settings, "large", 1_000_000 if settings.quick else 50_000_000)
    # Half a byte of memory a token forces dozens of runs.
    tight = max(large.num_tokens // 2, 4 << 20)
    budget = min(large.num_tokens // 20, 3_000_000)

    def mine(corpus: memgraft.Corpus, threads: int, **options: Any) -> memgraft.KeySet:
        return memgraft.mine(
            corpus, orders=ORDERS, threads=threads, temporary=settings.scratch, sample=False, **options
        )

    documents = [small.document(number).tolist() for number in range(small.num_documents)]
    expected = count_in_python(documents)
    found = mine(small, 1, budget=None)
    if {key: found.count(row) for row, key in enumerate(found)} != expected:
        raise WrongAnswer("mine: other keys or counts than the Python counter")
    reference = mine(large, 1, budget=budget).fingerprint
    for threads, options in ((2, {}), (1, {"memory": tight}), (2, {"memory": tight})):
        if mine(large, threads, budget=budget, **options).fingerprint != reference:
            raise WrongAnswer(f"mine: {threads} threads and {options} change the key set")
    tokens = large.num_tokens
    return {
        "num_tokens": tokens,
        "tight_memory": tight,
        "timings": contest(
            [
                Contender("mine", tokens, lambda: mine(large, 1, budget=budget)),
                Contender("mine, 2 threads", tokens, lambda: mine(large, 2, budget=budget)),
                Contender("mine, spilling", tokens, lambda: mine(large, 1, budget=budget, memory=tight)),
                Contender("mine, spilling, 2 threads", tokens, lambda: mine(large, 2, budget=budget, memory=tight)),
            ],
            min(settings.rounds, 3),
            warm=False,
        ),
        "slice": contest(
            [
                Contender("mine", small.num_tokens, lambda: mine(small, 1, budget=None)),
                Contender("Python Counter, counts only", small.num_tokens, lambda: count_in_python(documents)),
            ],
            min(settings.rounds, 3),
            warm=False,
        ),
    }


if __name__ == "__main__":
    main(group)
