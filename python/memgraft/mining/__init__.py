"""Mining: from a token corpus to the key set of its frequent n-grams, and how far keys reach on a stream."""

from memgraft.mining.facts import Coverage, coverage
from memgraft.mining.miner import mine
from memgraft.mining.options import budgets_by_order, parse_bytes
from memgraft.mining.parts import RunSet, merge_parts, mine_part, select_parts
from memgraft.mining.room import SpillPlan, plan_spill
from memgraft.mining.tables import Columns, import_counts

__all__ = [
    "Columns",
    "Coverage",
    "RunSet",
    "SpillPlan",
    "budgets_by_order",
    "coverage",
    "import_counts",
    "merge_parts",
    "mine",
    "mine_part",
    "parse_bytes",
    "plan_spill",
    "select_parts",
]
