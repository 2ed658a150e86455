"""An overlay for a bank: mine what it lacks, harvest it with the settings the bank was harvested with."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from memgraft.arguments import refuse_paths
from memgraft.bank import Bank
from memgraft.corpus import Corpus, CorpusSample
from memgraft.errors import FingerprintError, KeySetError
from memgraft.harvesting.donor import Donor, open_donor
from memgraft.harvesting.occurrences import Contexts
from memgraft.harvesting.run import harvest
from memgraft.keyset import KeySet
from memgraft.keysets import rows_in
from memgraft.mining import mine
from memgraft.mining.miner import budgets_by_order
from memgraft.progress import Progress, callback
from memgraft.tokenizer import facts_of_keys, refuse_other_tokens


@dataclass(frozen=True, kw_only=True)
class Lacking:
    """The n-grams of a corpus that a bank has no row for.

    Attributes:
        keys: the new keys, within the budget.
        known: n-grams left out because the bank has them in full, by order, among those that were looked at.
        over_budget: new n-grams that were frequent enough and did not fit the budget, by order, among those looked at.
    """

    keys: KeySet
    known: Mapping[int, int]
    over_budget: Mapping[int, int]


def mine_lacking(
    bank: Bank,
    corpus: Corpus,
    budget: int | Mapping[int, int] | None,
    *,
    orders: Sequence[int] | None = None,
    min_count: int = 2,
    memory: int | str = "4GiB",
    temporary: str | os.PathLike[str] | None = None,
    reserved: Sequence[int] | None = None,
    threads: int | None = None,
    progress: Progress | bool | None = None,
) -> Lacking:
    """Mines the most frequent n-grams of ``corpus`` that are no key of ``bank``.

    Args:
        bank: the base, or a stack.
        corpus: tokens of the bank's tokenizer.
        budget: new keys, as for `memgraft.mine`.
        orders: lengths of keys; the bank's own by default.
        min_count: fewest occurrences of a key.
        temporary: folder for what outgrows the memory; default: ``$TMPDIR``.
        memory: working memory of the mining.
        reserved: tokens that are in no key; the bank's own by default.
        threads: default: every core.
        progress: True for bars, or called with (phase, done, total).

    Raises:
        FingerprintError: the corpus is of another tokenizer than the bank's keys.
        KeySetError: the bank has every frequent n-gram already.
        ArgumentError: options out of range.
    """
    refuse_paths(bank=bank, corpus=corpus)
    progress = callback(progress)
    refuse_other_tokens(facts_of_keys(bank.keys.metadata, bank.manifest.tokenizer), corpus)
    budgets = budgets_by_order(tuple(orders or bank.index.orders), budget)
    # At most as many of an order are taken away again as the bank has, so that the budget is filled exactly.
    have = bank.index.num_keys_by_order
    wide = {order: None if most is None else most + have.get(order, 0) for order, most in budgets.items()}
    size = bank.index.vocab_size
    # What the tokenizer got after the bank was mined is in no key of it.
    later = range(size, max(size, corpus.vocab_size or 0))
    mined = mine(
        corpus,
        orders=tuple(wide),
        budget=None if None in wide.values() else {order: most for order, most in wide.items() if most is not None},
        min_count=min_count,
        memory=memory,
        temporary=temporary,
        reserved=(*(bank.keys.reserved if reserved is None else reserved), *later),
        vocab_size=size + len(later),
        threads=threads,
        sample=False,  # taken below, once there is something to keep
        progress=progress,
    )
    if later:
        mined = _within(mined, size)
    there = rows_in(mined, bank.index, threads=threads) >= 0
    lengths = np.diff(mined.arrays().offsets.astype(np.int64))
    keep = np.zeros(len(mined), np.bool_)
    over: dict[int, int] = {}
    for order, most in budgets.items():
        new = np.flatnonzero(~there & (lengths == order))  # most frequent first
        keep[new[:most]] = True
        over[order] = len(new) - len(new[:most])
    if not keep.any():
        raise KeySetError(
            f"{corpus.paths[0]}: the bank has every n-gram of orders {list(budgets)} that occurs {min_count} times or "
            "more; take another corpus, more orders or a smaller min_count"
        )
    known = {order: int((there & (lengths == order)).sum()) for order in budgets}
    extends = {"extends": {"bank": bank.fingerprint, "known": {str(order): n for order, n in known.items()}}}
    keys = mined.select(keep).with_metadata({**mined.metadata, **extends})
    sample = CorpusSample.of(corpus, progress=progress).to_bytes()
    return Lacking(keys=keys.with_sample(sample), known=known, over_budget=over)


def _within(keys: KeySet, vocab_size: int) -> KeySet:
    """The same keys, none of which holds a later token, for a vocabulary of ``vocab_size``."""
    arrays = keys.arrays()
    return KeySet.from_arrays(
        arrays.tokens,
        arrays.offsets,
        arrays.counts,
        arrays.documents,
        vocab_size=vocab_size,
        reserved=[token for token in keys.reserved if token < vocab_size],
        metadata=keys.metadata,
    )


def harvest_like(
    bank: Bank,
    keys: KeySet,
    *,
    recipient_tokenizer: Any,
    donor: str | Path | Donor,
    out: str | Path,
    corpus: Corpus | None = None,
    device: str | None = None,
    resume: bool = True,
    warn: bool = True,
    progress: Progress | bool | None = None,
) -> Bank:
    """Harvests ``keys`` with the donor, taps, prefix, contexts and storage type that ``bank`` was harvested with.

    ``corpus`` is what ``keys`` were mined from; a bank that was harvested in contexts needs it. ``warn`` is that of
    `harvest`.

    Raises:
        FingerprintError: ``donor`` is not the one that made the bank's values, or the bank does not say how it ran.
        ArgumentError: the storage type cannot be harvested, or contexts have no corpus.
        DonorError, TokenError, KeySetError, StorageError: as for `harvest`.
    """
    progress = callback(progress)
    facts = bank.manifest.donor
    if missing := [name for name in ("compute_dtype", "round_trip", "batch_tokens") if name not in facts]:
        raise FingerprintError(
            f"{bank.path / 'bank.json'}: expected the settings of its harvest, found no {', '.join(missing)}; "
            "an overlay needs values of the same kind: harvest both banks with `memgraft harvest`"
        )
    opened = open_donor(donor, compute_dtype=str(facts["compute_dtype"]), device=device, progress=progress)
    for name in ("fingerprint", "compute_dtype"):
        found = opened.facts()[name]
        if found != facts.get(name):
            raise FingerprintError(
                f"donor {donor if not isinstance(donor, Donor) else donor.name}: expected {name} {facts.get(name)} as "
                f"in {bank.path}, found {found}; name the donor that the bank was harvested from"
            )
    # Banks from before there were prefixes say whether the BOS stood before each key.
    prefix = facts.get("prefix", [opened.bos] if facts.get("prepend_bos") else [])
    contexts = Contexts.recorded(facts, bank.keys)
    return harvest(
        keys,
        recipient_tokenizer=recipient_tokenizer,
        donor=opened,
        taps=bank.taps,
        out=out,
        dtype=bank.dtype,
        prefix=list(prefix) if prefix else "none",
        contexts=contexts,
        corpus=None if contexts is None else corpus,
        round_trip=facts["round_trip"],
        batch_tokens=int(facts["batch_tokens"]),
        device=device,
        resume=resume,
        warn=warn,
        progress=progress,
    )
