"""What a bank records of the donor's reading, and the warning of rows that came out nearly alike."""

import warnings
from typing import Any

import numpy as np

from memgraft.bank import Bank
from memgraft.bank.health import bank_health, collapsed, length_groups
from memgraft.harvesting.packing import shared_lengths
from memgraft.harvesting.selecting import SORTED_ROWS, Selection


def reading_facts(selection: Selection, *, alone: bool = True) -> dict[str, Any]:
    """Rows by number of donor tokens; of keys read ``alone``, how many read what another reads, and share its value."""
    groups = length_groups(selection.tokens.lengths, selection.kept.arrays().counts)
    if not alone:
        return {"rows_by_donor_length": groups}
    same = 0
    for start in range(0, len(selection.order), SORTED_ROWS):
        part = selection.tokens.take(np.asarray(selection.order[start : start + SORTED_ROWS]))
        lengths = part.lengths
        same += int(((shared_lengths(part)[1:] == lengths[1:]) & (lengths[1:] == lengths[:-1])).sum())
    return {"rows_by_donor_length": groups, "num_same_donor_tokens": same}


def warn_of_collapse(bank: Bank) -> None:
    """A warning for each group of rows that are nearly one value."""
    for line in collapsed(bank_health(bank)):
        warnings.warn(f"{bank.path}: {line}", stacklevel=3)
