"""The fallback's multipliers and prime table sizes, bit for bit as Engram draws them (docs/METHOD.md, section 4)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

LAYER_SEED_STRIDE = 10007
# Deterministic Miller-Rabin witnesses for every n < 3.3e24.
_WITNESSES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41)


def is_prime(number: int) -> bool:
    """Exact primality for every 64-bit integer."""
    if number < 2:
        return False
    for witness in _WITNESSES:
        if number % witness == 0:
            return number == witness
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for witness in _WITNESSES:
        x = pow(witness, odd, number)
        if x in (1, number - 1):
            continue
        for _ in range(twos - 1):
            x = x * x % number
            if x == number - 1:
                break
        else:
            return False
    return True


def prime_sizes(num_sites: int, table_sizes: Sequence[int], num_heads: int) -> list[list[list[int]]]:
    """Slots of every head: ``sizes[site][order][head]``, all distinct primes.

    Handed out site by site, orders ascending, heads in turn: each order starts at ``table_size - 1``, each head takes
    the next larger prime that no earlier head of any site or order has.
    """
    taken: set[int] = set()
    sizes: list[list[list[int]]] = []
    for _ in range(num_sites):
        of_site: list[list[int]] = []
        for table_size in table_sizes:
            heads: list[int] = []
            last = table_size - 1
            for _ in range(num_heads):
                last += 1
                while last in taken or not is_prime(last):
                    last += 1
                taken.add(last)
                heads.append(last)
            of_site.append(heads)
        sizes.append(of_site)
    return sizes


def multipliers(seed: int, layer: int, max_order: int, vocab_compressed: int) -> npt.NDArray[np.int64]:
    """Odd multipliers m_0 .. m_{max_order-1}, (max_order,) int64; m_0 multiplies the current token."""
    rng = np.random.default_rng(seed + LAYER_SEED_STRIDE * layer)
    half = max(1, int(np.iinfo(np.int64).max) // vocab_compressed // 2)
    return rng.integers(0, half, size=max_order, dtype=np.int64) * 2 + 1
