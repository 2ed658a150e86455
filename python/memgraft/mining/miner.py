"""``mine``: the frequent n-grams of a corpus, with exact counts."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from memgraft import _core
from memgraft.arguments import refuse_paths
from memgraft.corpus import Corpus, CorpusSample
from memgraft.keyset import KeySet
from memgraft.mining import options, room
from memgraft.mining.options import Choice, Keep, Policy, Progress, budgets_by_order, parse_bytes
from memgraft.names import TOOL
from memgraft.progress import callback

__all__ = ["budgets_by_order", "finished", "mine", "parse_bytes"]


def mine(
    corpus: Corpus,
    orders: Sequence[int] = (2, 3, 4),
    budget: int | Mapping[int, int] | None = 3_000_000,
    *,
    min_count: int = 2,
    policy: Policy = "shares",
    min_documents: int = 0,
    exclude: Corpus | None = None,
    exclude_from: int | None = None,
    require: Sequence[Sequence[int]] | KeySet = (),
    keep: Keep | None = None,
    memory: int | str = "4GiB",
    sketch: bool = False,
    reserved: Sequence[int] = (),
    vocab_size: int | None = None,
    temporary: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    sample: bool = True,
    progress: Progress | bool | None = None,
) -> KeySet:
    """Mines the most frequent n-grams of ``corpus``, with exact counts and document frequencies.

    N-grams lie inside one document and hold no reserved token: those given, the corpus's ``eos_id``, and the special
    tokens of its tokenizer. The result depends on the corpus and on what says which keys are kept, never on threads,
    memory or ``sketch``; settings and the corpus's fingerprint stand in its metadata.

    Args:
        corpus: the tokens; after :meth:`Corpus.split`, the training part.
        orders: lengths of keys, 1 to 16.
        budget: keys in all, in equal shares per order (a remainder goes to the lowest orders; a share that an order
            cannot fill stays empty); or keys per order; or ``None`` for every key that is frequent enough.
            Ties go by the key.
        min_count: fewest occurrences of a key.
        policy: ``"shares"`` fills the budget of each order by count; the others need a number as budget and let orders
            compete: ``"count"``, ``"documents"``, or ``"gain"`` (:meth:`KeySet.select_by_gain` among the four times as
            many most frequent).
        min_documents: fewest documents with a key.
        exclude: evaluation text, as tokens of the same tokenizer.
        exclude_from: no key of this order and longer is kept that occurs in ``exclude``.
        require: keys that are kept whatever their count; they are part of the budget, and of the share of their order.
        keep: given candidates (:class:`memgraft.keyset.KeyArrays`) in batches, from several threads, says which may be
            kept: a boolean each. Its answer for a key must not depend on the batch.
        memory: working memory, such as ``"4GiB"`` or a number of bytes; the finished key set comes on top.
        sketch: where the corpus outgrows the memory, first passes over it and notes in a quarter of the memory what
            occurs twice, so that n-grams seen once are not spilled; ``min_count`` of 2 and more.
        reserved: further tokens that are in no key.
        vocab_size: every token is smaller than this; default: that of the corpus's tokenizer.
        temporary: folder for what outgrows the memory (:func:`plan_spill`); default: ``$TMPDIR``. Its files have no
            name and vanish with the process.
        threads: default: every core.
        sample: also take a small sample of the documents (:attr:`KeySet.sample`), by which `coverage` and trainings
            see text that was mined; it reads the corpus once more, 256 M tokens of it at most.
        progress: True for bars, or called with (phase, done, total) on the calling thread; what it raises ends
            the mining.

    Raises:
        ArgumentError: options out of range, more keys required than the budget holds, or no vocabulary size.
        TokenError: a token of the corpus, or its tokenizer, is not below ``vocab_size``.
        LimitError: the selected keys outgrow the memory.
        StorageError: the temporary folder cannot be written, or has less room than mining takes at least
            (:class:`SpillPlan`).
        KeyboardInterrupt: Ctrl-C; nothing is left behind.
    """
    refuse_paths(corpus=corpus, exclude=exclude)
    progress = callback(progress)
    chosen = options.choice(
        orders,
        budget,
        min_count,
        policy=policy,
        min_documents=min_documents,
        exclude=exclude,
        exclude_from=exclude_from,
        require=require,
        keep=keep,
    )
    vocab_size, kept_out = options.vocabulary(corpus, vocab_size, reserved)
    used = options.means(memory, temporary, threads, sketch=sketch)
    room.plan_mining(
        corpus, chosen, vocab_size, kept_out, memory=memory, sketch=sketch, temporary=temporary, threads=threads
    ).check()
    mined = _core.mine(corpus._core, chosen.core, vocab_size, kept_out, used, progress)
    found = {
        "fingerprint": corpus.fingerprint,
        "num_tokens": corpus.num_tokens,
        "num_documents": corpus.num_documents,
        "eos_id": corpus.eos_id,
    }
    keys = finished(mined, chosen, found, corpus.tokenizer, corpus.tokenizer_mapping, corpus.split_facts)
    return keys.with_sample(CorpusSample.of(corpus, progress=progress).to_bytes()) if sample else keys


def finished(
    mined: _core.Mined,
    chosen: Choice,
    corpus: dict[str, Any],
    tokenizer: str | None,
    tokenizer_mapping: Mapping[str, Any] | None,
    split: Mapping[str, Any] | None,
) -> KeySet:
    """The key set of what was mined, with its metadata."""
    keys = KeySet(mined.keys)
    if chosen.policy == "gain" and chosen.budget is not None:
        keys = keys.select_by_gain(min(chosen.budget, len(keys)), chosen.required)

    def by_order(values: list[int]) -> dict[str, int]:
        return {str(order): values[order] for order in chosen.budgets}

    facts = dict(chosen.facts)
    if "exclude" in facts:
        facts["exclude"] = {**facts["exclude"], "dropped": by_order(mined.excluded)}
    facts |= {
        "positions": by_order(mined.positions),
        "distinct": by_order(mined.distinct),
        "frequent": by_order(mined.frequent),
        "tool": TOOL,
    }
    mapping = {} if tokenizer_mapping is None else {"tokenizer_mapping": dict(tokenizer_mapping)}
    named = {"corpus": corpus, "tokenizer": tokenizer, **mapping}
    return keys.with_metadata({**named, "split": None if split is None else dict(split), "mining": facts})
