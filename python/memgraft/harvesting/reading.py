"""What a bank records of the donor's reading, and the warnings of rows that are of little use."""

import logging
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from memgraft.bank import Bank
from memgraft.bank.health import bank_health, collapsed, health_warnings, length_groups, whole_health
from memgraft.harvesting.ordering import neighbours
from memgraft.harvesting.selecting import Selection
from memgraft.names import LOG_NAME

_BLOCK = 1 << 20


def reading_facts(selection: Selection, *, alone: bool = True) -> dict[str, Any]:
    """Rows by number of donor tokens; of keys read ``alone``, how many read what another reads, and share its value."""
    number = len(selection.tokens)
    lengths = np.empty(number, np.uint8)
    for start in range(0, number, _BLOCK):
        part = selection.tokens.offsets[start : start + _BLOCK + 1]
        lengths[start : start + _BLOCK] = np.minimum(np.diff(part), 255)

    def counts(start: int, stop: int) -> npt.NDArray[np.uint64]:
        return selection.kept.arrays(start, stop).counts

    facts: dict[str, Any] = {"rows_by_donor_length": length_groups(lengths, counts)}
    if alone:
        facts["num_same_donor_tokens"] = sum(
            int(((shared == own) & (own == before)).sum())
            for own, before, shared in neighbours(selection.tokens, selection.order)
        )
    return facts


def warn_of_health(bank: Bank) -> None:
    """Tells each figure of the bank's health that a person should look at.

    Rows that are nearly one value are a warning of Python's; the other figures are lines in the log ``memgraft``, which
    Python prints where nobody listens.
    """
    groups = bank_health(bank)
    alike = collapsed(groups)
    for line in alike:
        warnings.warn(f"{bank.path}: {line}", stacklevel=3)
    for line in health_warnings(groups, whole_health(bank))[len(alike) :]:
        logging.getLogger(LOG_NAME).warning("%s: %s", bank.path, line)
