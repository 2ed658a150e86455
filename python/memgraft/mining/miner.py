"""``mine``: the frequent n-grams of a corpus, with exact counts."""

import operator
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from memgraft import _core
from memgraft.corpus import Corpus
from memgraft.errors import ArgumentError, TokenError
from memgraft.keyset import KeySet

Progress = Callable[[str, int, int], object]

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def mine(
    corpus: Corpus,
    orders: Sequence[int] = (2, 3, 4),
    budget: int | Mapping[int, int] | None = 3_000_000,
    *,
    min_count: int = 2,
    memory: int | str = "4GiB",
    reserved: Sequence[int] = (),
    vocab_size: int | None = None,
    temporary: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> KeySet:
    """Mines the most frequent n-grams of ``corpus``, with exact counts and document frequencies.

    N-grams lie inside one document and hold no reserved token: those given, the corpus's ``eos_id``, and the special
    tokens of its tokenizer. The result depends on the corpus and on ``orders``, ``budget``, ``min_count``, ``reserved``
    and ``vocab_size`` alone, never on threads or memory; they and the corpus's fingerprint stand in its metadata.

    Args:
        corpus: the tokens; after :meth:`Corpus.split`, the training part.
        orders: lengths of keys, 1 to 16.
        budget: keys in all, in equal shares per order (a remainder goes to the lowest orders; a share that an order
            cannot fill stays empty); or keys per order; or ``None`` for every key that is frequent enough.
            Ties go by the key.
        min_count: fewest occurrences of a key.
        memory: working memory, such as ``"4GiB"`` or a number of bytes; the finished key set comes on top.
        reserved: further tokens that are in no key.
        vocab_size: every token is smaller than this; default: that of the corpus's tokenizer.
        temporary: folder for what outgrows the memory, about 5 to 16 bytes per token and four orders; default:
            ``$TMPDIR``. Its files have no name and vanish with the process.
        threads: default: every core.
        progress: called with (stage, done, total) on the calling thread; what it raises ends the mining.

    Raises:
        ArgumentError: options out of range, or no vocabulary size.
        TokenError: a token of the corpus, or its tokenizer, is not below ``vocab_size``.
        LimitError: the selected keys outgrow the memory.
        StorageError: the temporary folder cannot be written.
        KeyboardInterrupt: Ctrl-C; nothing is left behind.
    """
    budgets = budgets_by_order(orders, budget)
    if vocab_size is None:
        vocab_size = corpus.vocab_size
    if vocab_size is None:
        raise ArgumentError(
            "vocab_size: the corpus does not tell its tokenizer; give vocab_size=, the tokenizer's number of ids"
        )
    if not 1 <= operator.index(vocab_size) <= 1 << 20:
        raise ArgumentError(
            f"vocab_size: expected 1 to {1 << 20}, got {vocab_size}; pass the tokenizer's number of ids"
        )
    if corpus.tokenizer is not None and corpus.vocab_size is not None and corpus.vocab_size > vocab_size:
        raise TokenError(
            f"vocab_size: expected at least the {corpus.vocab_size} ids of the corpus's tokenizer, found {vocab_size}; "
            "declare the model's real vocabulary"
        )
    kept_out = {operator.index(token) for token in reserved} | set(corpus.special_ids)
    if corpus.eos_id is not None:
        kept_out.add(corpus.eos_id)
    bad = sorted(token for token in kept_out if not 0 <= token < vocab_size)
    if bad:
        raise ArgumentError(
            f"reserved: expected tokens below vocab_size {vocab_size}, got {bad[0]}; give the tokenizer's full size"
        )
    mined = _core.mine(
        corpus._core,
        budgets,
        _positive("min_count", min_count),
        operator.index(vocab_size),
        sorted(kept_out),
        parse_bytes(memory),
        os.fspath(temporary) if temporary is not None else tempfile.gettempdir(),
        _positive("threads", threads) if threads is not None else os.cpu_count() or 1,
        progress,
    )
    return KeySet.from_arrays(
        mined["tokens"],
        mined["offsets"],
        mined["counts"],
        mined["documents"],
        vocab_size=vocab_size,
        reserved=sorted(kept_out),
        metadata=_metadata(corpus, budgets, min_count, mined),
    )


def _metadata(
    corpus: Corpus, budgets: Mapping[int, int | None], min_count: int, mined: Mapping[str, Any]
) -> dict[str, Any]:
    def by_order(name: str) -> dict[str, int]:
        return {str(order): mined[name][order] for order in budgets}

    return {
        "corpus": {
            "fingerprint": corpus.fingerprint,
            "num_tokens": corpus.num_tokens,
            "num_documents": corpus.num_documents,
            "eos_id": corpus.eos_id,
        },
        "tokenizer": corpus.tokenizer,
        "split": corpus.split_facts,
        "mining": {
            "orders": sorted(budgets),
            "budgets": {str(order): budget for order, budget in budgets.items()},
            "min_count": min_count,
            "positions": by_order("positions"),
            "distinct": by_order("distinct"),
            "frequent": by_order("frequent"),
            "tool": f"memgraft {_core.__version__}",
        },
    }


def budgets_by_order(orders: Sequence[int], budget: int | Mapping[int, int] | None) -> dict[int, int | None]:
    """The most keys of each order that ``budget`` allows; ``None`` where there is no limit.

    Raises:
        ArgumentError: orders or budget out of range.
    """
    wanted = sorted({operator.index(order) for order in orders})
    if not wanted or not 1 <= wanted[0] <= wanted[-1] <= 16:
        raise ArgumentError(f"orders: expected some of 1 to 16, got {tuple(orders)}")
    if budget is None:
        return dict.fromkeys(wanted, None)
    if isinstance(budget, Mapping):
        if set(budget) != set(wanted):
            raise ArgumentError(f"budget: expected one entry for each of the orders {wanted}, got {sorted(budget)}")
        return {order: _positive(f"budget of order {order}", budget[order]) for order in wanted}
    share, rest = divmod(_positive("budget", budget), len(wanted))
    if share == 0:
        raise ArgumentError(f"budget: expected at least one key for each of {len(wanted)} orders, got {budget}")
    return {order: share + (place < rest) for place, order in enumerate(wanted)}


def _positive(name: str, value: int) -> int:
    if not 1 <= operator.index(value) < 2**63:
        raise ArgumentError(f"{name}: expected 1 or more, got {value}")
    return operator.index(value)


def parse_bytes(size: int | str) -> int:
    """Returns ``size`` in bytes: ``"4GiB"``, ``"500MB"``, ``"1.5g"`` or a number.

    Raises:
        ArgumentError: it is none of these.
    """
    if isinstance(size, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?|)b?\s*", size.lower())
        if match is None:
            raise ArgumentError(f'memory: expected a size such as "4GiB" or "500MB", got {size!r}')
        return int(float(match[1]) * _UNITS[match[2]])
    return _positive("memory", size)
