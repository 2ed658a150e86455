"""What mining is told, checked and made ready for the compiled half."""

import operator
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from memgraft import _core
from memgraft.config import MAX_VOCAB_SIZE
from memgraft.corpus import Corpus
from memgraft.errors import ArgumentError, TokenError
from memgraft.keyset import KeyArrays, KeySet
from memgraft.progress import Progress as Progress
from memgraft.system import made_folder, num_threads

Policy: TypeAlias = Literal["shares", "count", "documents", "gain"]
"""Which keys come first: in equal shares per order by count, or of all orders together by one measure."""
POLICIES: tuple[Policy, ...] = ("shares", "count", "documents", "gain")
Keep: TypeAlias = Callable[[KeyArrays], NDArray[np.bool_]]
"""Says for each candidate of a batch whether it may be kept."""

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}

GAIN_CANDIDATES = 4
"""Candidates for each key of the budget that the policy "gain" chooses among."""


class Choice(NamedTuple):
    """The choice of keys, for the compiled half and for the metadata."""

    core: _core.Choice
    budgets: dict[int, int | None]
    facts: dict[str, Any]
    policy: Policy
    budget: int | None
    required: list[tuple[int, ...]]


def choice(
    orders: Sequence[int],
    budget: int | Mapping[int, int] | None,
    min_count: int,
    *,
    policy: Policy = "shares",
    min_documents: int = 0,
    exclude: Corpus | None = None,
    exclude_from: int | None = None,
    require: Sequence[Sequence[int]] | KeySet = (),
    keep: Keep | None = None,
) -> Choice:
    """Checks and joins what says which keys are kept.

    Raises:
        ArgumentError: options out of range or at odds.
    """
    if policy not in POLICIES:
        raise ArgumentError(f"policy: expected one of {', '.join(POLICIES)}, got {policy!r}")
    total: int | None = None
    if policy == "shares":
        budgets = budgets_by_order(orders, budget)
    else:
        # Orders compete, so that none has a share, and a budget may be smaller than their number.
        budgets = budgets_by_order(orders, None)
        if budget is None or isinstance(budget, Mapping):
            raise ArgumentError(f'budget: policy "{policy}" expected a number of keys in all, got {budget!r}')
        total = positive("budget", budget)
    if (exclude is None) != (exclude_from is None):
        raise ArgumentError(
            "exclude: expected text and exclude_from=, the lowest order that it refuses, got one of them"
        )
    if operator.index(min_documents) < 0:
        raise ArgumentError(f"min_documents: expected 0 or more, got {min_documents}")
    required = sorted({tuple(operator.index(token) for token in key) for key in require})
    if any(not 0 <= token < 2**32 for key in required for token in key):
        raise ArgumentError("require: expected keys of token ids, got a negative one or one beyond 32 bits")
    _check_required(required, budgets, total)
    held = total * GAIN_CANDIDATES if total is not None and policy == "gain" else total
    core = _core.Choice(
        dict(budgets),
        held,
        policy == "documents",
        positive("min_count", min_count),
        min_documents,
        [list(key) for key in required],
        None if exclude is None else exclude._core,
        exclude_from or 1,
        None if keep is None else lambda *arrays: _answers(keep(KeyArrays(*arrays)), len(arrays[2])),
    )
    facts: dict[str, Any] = {
        "orders": sorted(budgets),
        "budgets": {str(order): share for order, share in budgets.items()},
        "min_count": min_count,
    }
    # Entries appear where they are used, so that a plain mining records what it always has.
    if policy != "shares":
        facts |= {"policy": policy, "budget": total}
    if min_documents:
        facts["min_documents"] = min_documents
    if exclude is not None:
        facts["exclude"] = {"fingerprint": exclude.fingerprint, "from_order": exclude_from}
    if required:
        facts["required"] = len(required)
    if keep is not None:
        facts["keep"] = getattr(keep, "__qualname__", type(keep).__name__)
    return Choice(core, budgets, facts, policy, total, required)


def _check_required(required: Sequence[Sequence[int]], budgets: Mapping[int, int | None], total: int | None) -> None:
    """Refuses required keys of other orders, or more than the budget, or the share of their order, has room for."""
    if other := next((key for key in required if len(key) not in budgets), None):
        orders = ", ".join(map(str, sorted(budgets)))
        raise ArgumentError(
            f"require: expected keys of the orders mined, {orders}, got {list(other)}; leave it out, or mine its order"
        )
    if total is not None and len(required) > total:
        raise ArgumentError(
            f"require: expected at most the {total} keys of the budget, got {len(required)}; give a larger budget, or "
            "require fewer"
        )
    for order, share in budgets.items():
        count = sum(len(key) == order for key in required)
        if share is not None and count > share:
            raise ArgumentError(
                f"require: expected at most {share} keys of order {order}, its share of the budget, got {count}; give "
                'that order a larger budget, take the policy "count", whose orders have no shares, or require fewer'
            )


def _answers(kept: object, num_candidates: int) -> NDArray[np.bool_]:
    array = np.asarray(kept)
    if array.dtype != np.bool_ or array.shape != (num_candidates,):
        raise ArgumentError(
            f"keep: expected a boolean array of shape ({num_candidates},), got {array.dtype} of shape {array.shape}"
        )
    return np.ascontiguousarray(array)


def means(
    memory: int | str,
    temporary: str | os.PathLike[str] | None,
    threads: int | None,
    *,
    sketch: bool = False,
) -> _core.Means:
    """Memory, disk and threads for the compiled half.

    Raises:
        ArgumentError: no size, or no positive number of threads.
    """
    return _core.Means(
        parse_bytes(memory),
        tempfile.gettempdir() if temporary is None else os.fspath(made_folder(Path(temporary))),
        positive("threads", threads) if threads is not None else num_threads(),
        sketch,
    )


def vocabulary(corpus: Corpus, vocab_size: int | None, reserved: Sequence[int]) -> tuple[int, list[int]]:
    """Vocabulary size, and the tokens that are in no key, ascending.

    Raises:
        ArgumentError: no vocabulary size, or a reserved token outside it.
        TokenError: the corpus's tokenizer has more ids.
    """
    if vocab_size is None:
        vocab_size = corpus.vocab_size
    if vocab_size is None:
        raise ArgumentError(
            "vocab_size: the corpus does not tell its tokenizer; give vocab_size=, the tokenizer's number of ids"
        )
    if not 1 <= operator.index(vocab_size) <= MAX_VOCAB_SIZE:
        raise ArgumentError(
            f"vocab_size: expected 1 to {MAX_VOCAB_SIZE}, got {vocab_size}; pass the tokenizer's number of ids"
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
    return operator.index(vocab_size), sorted(kept_out)


def budgets_by_order(orders: Sequence[int], budget: int | Mapping[int, int] | None) -> dict[int, int | None]:
    """The most keys of each order that ``budget`` allows; ``None`` where there is no limit.

    Raises:
        ArgumentError: orders or budget out of range.
    """
    try:
        wanted = sorted({operator.index(order) for order in orders})
    except TypeError:
        raise ArgumentError(f"orders: expected whole numbers, as (2, 3, 4), got {orders!r}") from None
    if not wanted or not 1 <= wanted[0] <= wanted[-1] <= 16:
        raise ArgumentError(f"orders: expected some of 1 to 16, got {tuple(orders)}")
    if budget is None:
        return dict.fromkeys(wanted, None)
    if isinstance(budget, Mapping):
        if set(budget) != set(wanted):
            raise ArgumentError(f"budget: expected one entry for each of the orders {wanted}, got {sorted(budget)}")
        return {order: positive(f"budget of order {order}", budget[order]) for order in wanted}
    if np.ndim(budget):
        raise ArgumentError(
            f"budget: expected keys in all as a number, or by order as {{{wanted[0]}: number, …}}, got {budget!r}"
        )
    share, rest = divmod(positive("budget", budget), len(wanted))
    if share == 0:
        raise ArgumentError(f"budget: expected at least one key for each of {len(wanted)} orders, got {budget}")
    return {order: share + (place < rest) for place, order in enumerate(wanted)}


def positive(name: str, value: int) -> int:
    """``value`` as an int of 1 and more.

    Raises:
        ArgumentError: it is none.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise ArgumentError(f"{name}: expected a whole number, got {value!r}") from None
    if not 1 <= number < 2**63:
        raise ArgumentError(f"{name}: expected 1 or more, got {value}")
    return number


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
    return positive("memory", size)
