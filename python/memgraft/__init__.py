"""Memory Grafting: frozen donor values for frequent n-grams, looked up by exact longest match.

``import memgraft`` needs numpy alone; the torch half lives in :mod:`memgraft.torch`.
"""

from memgraft import errors
from memgraft._core import __version__
from memgraft.bank import Bank, BankWriter
from memgraft.corpus import Corpus, CorpusWriter, tokenize_folder
from memgraft.index import NgramIndex
from memgraft.keyset import KeyArrays, KeySet
from memgraft.mining import mine

__all__ = [
    "Bank",
    "BankWriter",
    "Corpus",
    "CorpusWriter",
    "KeyArrays",
    "KeySet",
    "NgramIndex",
    "__version__",
    "errors",
    "mine",
    "tokenize_folder",
]
