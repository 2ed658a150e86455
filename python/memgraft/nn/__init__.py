"""Torch modules of a site; they know neither banks nor transformers."""

from memgraft.nn.compression import CompressedVocabulary
from memgraft.nn.fallback import HashFallback
from memgraft.nn.graft_layer import GraftLayer
from memgraft.nn.optim import RowwiseAdamW

__all__ = ["CompressedVocabulary", "GraftLayer", "HashFallback", "RowwiseAdamW"]
