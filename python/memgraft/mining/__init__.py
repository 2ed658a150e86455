"""Mining: from a token corpus to the key set of its frequent n-grams, and how far keys reach on a stream."""

from memgraft.mining.facts import Coverage, coverage
from memgraft.mining.miner import budgets_by_order, mine, parse_bytes

__all__ = ["Coverage", "budgets_by_order", "coverage", "mine", "parse_bytes"]
