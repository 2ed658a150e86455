"""Numbers as people write them: ``3k``, ``3e6``, ``3,000``, ``2-4``."""

import re

from memgraft.errors import ArgumentError

_SUFFIXES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}
_NUMBER = re.compile(r"(\d+(?:\.\d+)?(?:e\d+)?)([kmgb]?)", re.IGNORECASE)
_GROUPED = re.compile(r"\d{1,3}(?:,\d{3})+")


def parse_count(name: str, text: str) -> int:
    """A whole number from ``3000``, ``3_000``, ``3,000``, ``3k``, ``1.5M`` or ``3e6``.

    Raises:
        ArgumentError: none of these, or no whole number.
    """
    plain = text.strip().replace("_", "")
    if _GROUPED.fullmatch(plain):
        plain = plain.replace(",", "")
    match = _NUMBER.fullmatch(plain)
    if match:
        mantissa, _, exponent = match[1].lower().partition("e")
        whole, _, part = mantissa.partition(".")
        power = int(exponent or 0)
        digits = len(part)
        scale = int(10 ** min(power, 19)) * _SUFFIXES[match[2].lower()]
        count, rest = divmod(int(whole + part) * scale, int(10**digits))
        if rest == 0 and power <= 18:
            return count
    raise ArgumentError(f"{name}: expected a number such as 3000, 3,000, 3k, 1.5M or 3e6, got {text!r}")


def parse_counts(name: str, text: str) -> list[int]:
    """Several of :func:`parse_count`, commas between; a comma never groups digits here.

    Raises:
        ArgumentError: an entry is no number.
    """
    return [parse_count(name, part) for part in text.split(",")]


def parse_range(name: str, text: str) -> list[int]:
    """Small numbers from ``2,3,4`` or ``2-4`` or both, in the order given.

    Raises:
        ArgumentError: not a list of numbers and ranges.
    """
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9}))?\s*", part)
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if low > high or high - low > 1000:
            raise ArgumentError(f"{name}: expected numbers with commas between, or a range such as 2-4, got {text!r}")
        found.extend(range(low, high + 1))
    return found
