"""Banks: a directory of keys, index and value tables."""

from memgraft.bank.bank import Bank
from memgraft.bank.manifest import Manifest
from memgraft.bank.memory import Memory, open_memory, open_memory_of
from memgraft.bank.overlay import Layer
from memgraft.bank.staging import Staged, StageFacts
from memgraft.bank.writer import BankWriter

__all__ = ["Bank", "BankWriter", "Layer", "Manifest", "Memory", "StageFacts", "Staged", "open_memory", "open_memory_of"]
