"""Stacks of two indexes beside the base alone: what an overlay costs, by its size and by how much text it answers.

Keys are real. Two overlays are hardly met by the text, as one of another domain: the keys that come next by count, one
for a hundred of the base's and as many as the base has. Two are of the text's own domain: the most frequent hundredth,
and every second key, so that base and overlay answer half each. Answers are compared with those of the two apart.
"""

from typing import Any

import numpy as np
from contest import Contender, check_equal, contest
from settings import Settings, main

from memgraft import KeySet, NgramIndex
from memgraft.bank.stacked import StackedIndex

MOST_BASE_KEYS = 4_000_000
POSITIONS_PER_KEY = 32
"""A stack walks over an overlay until it has looked up so many positions for each of the overlay's keys; all keys are
one table when it has looked up as many for each of them."""


def stacks(keys: KeySet) -> dict[str, tuple[KeySet, KeySet]]:
    """Base and overlay by name."""
    size = min(MOST_BASE_KEYS, len(keys) // 2)
    few = size // 100

    def ranks(start: int, stop: int, step: int = 1) -> KeySet:
        return keys.select(np.arange(start, stop, step))

    return {
        "1 %, text of the base": (ranks(0, size), ranks(size, size + few)),
        "1 %, its own text": (ranks(few, size), ranks(0, few)),
        "equal sizes, text of the base": (ranks(0, size), ranks(size, 2 * size)),
        "equal sizes, text of both": (ranks(0, 2 * size, 2), ranks(1, 2 * size, 2)),
    }


def merged(base: NgramIndex, overlay: NgramIndex, text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the stack answers, from the two indexes apart."""
    (rows, orders), (over, over_orders) = base.lookup(text), overlay.lookup(text)
    taken = over_orders >= np.maximum(orders, 1)
    return np.where(taken, over + len(base), rows), np.where(taken, over_orders, orders)


def group(settings: Settings) -> dict[str, Any]:
    """Every stack beside its base, one thread."""
    num_tokens = 1 << 17 if settings.quick else 1 << 19
    text = np.fromfile(f"{settings.corpus}.bin", dtype=np.uint16)[-num_tokens:]
    out = (np.empty(len(text), np.int32), np.empty(len(text), np.uint8))
    report: dict[str, Any] = {"unit": "token", "tokens": len(text)}
    for name, (low, high) in stacks(KeySet.open(settings.keys)).items():
        base, overlay = NgramIndex.build(low), NgramIndex.build(high)
        stack, young = StackedIndex([base, overlay]), StackedIndex([base, overlay])
        rows, orders = merged(base, overlay, text)
        # Walked at first, then with what was read of the overlay, then one table.
        for _ in range(2 + POSITIONS_PER_KEY * (len(base) + len(overlay)) // len(text)):
            found = stack.lookup(text, threads=1)
            check_equal(f"{name}, rows", rows, found[0])
            check_equal(f"{name}, orders", orders, found[1])

        def alone(base: NgramIndex = base) -> None:
            base.lookup(text, out=out, threads=1)

        def stacked(stack: StackedIndex = stack) -> None:
            stack.lookup(text, out=out, threads=1)

        def early(stack: StackedIndex = young) -> None:
            stack.lookup(text, out=out, threads=1)

        def fresh(base: NgramIndex = base, overlay: NgramIndex = overlay) -> None:
            StackedIndex([base, overlay]).lookup(text, out=out, threads=1)

        contenders = [
            Contender("base alone", len(text), alone),
            Contender("stack", len(text), stacked),
            Contender("stack, before all its keys are one table", len(text), early),
            Contender("a new stack's first lookup", len(text), fresh),
        ]
        report[name] = {
            "keys": [len(base), len(overlay)],
            "answered_by_overlay": float((rows >= len(base)).mean()),
            "timings": contest(contenders, settings.rounds),
        }
    return report


if __name__ == "__main__":
    main(group)
