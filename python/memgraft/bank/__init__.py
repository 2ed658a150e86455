"""Banks: a directory of keys, index and value tables."""

from memgraft.bank.bank import Bank
from memgraft.bank.manifest import Manifest
from memgraft.bank.overlay import Layer
from memgraft.bank.staging import Staged, StageFacts
from memgraft.bank.writer import BankWriter

__all__ = ["Bank", "BankWriter", "Layer", "Manifest", "StageFacts", "Staged"]
