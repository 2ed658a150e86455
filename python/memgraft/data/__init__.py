"""What a training loader calls: segments, collation, staging ahead."""

from memgraft.data.batch import KEY, MemoryBatch
from memgraft.data.collate import GraftCollator
from memgraft.data.hot import HotRows
from memgraft.data.prefetch import PrefetchFacts, PrefetchLoader, prefetch
from memgraft.data.ring import StagingRing

__all__ = [
    "KEY",
    "GraftCollator",
    "HotRows",
    "MemoryBatch",
    "PrefetchFacts",
    "PrefetchLoader",
    "StagingRing",
    "prefetch",
]
