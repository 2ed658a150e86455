"""Memory Grafting: frozen donor values for frequent n-grams, looked up by exact longest match.

``import memgraft`` needs numpy alone; the torch half lives in :mod:`memgraft.torch`, and ``memgraft.harvest``
imports torch when it is first touched.
"""

import importlib
from typing import TYPE_CHECKING, Any

from memgraft import errors
from memgraft._core import __version__
from memgraft.bank import Bank, BankWriter
from memgraft.corpus import Corpus, CorpusWriter, tokenize_folder
from memgraft.cursor import Cursor
from memgraft.index import NgramIndex
from memgraft.keyset import KeyArrays, KeySet
from memgraft.mining import coverage, mine

if TYPE_CHECKING:
    from memgraft.harvesting import harvest

__all__ = [
    "Bank",
    "BankWriter",
    "Corpus",
    "CorpusWriter",
    "Cursor",
    "KeyArrays",
    "KeySet",
    "NgramIndex",
    "__version__",
    "coverage",
    "errors",
    "harvest",
    "mine",
    "tokenize_folder",
]


def __getattr__(name: str) -> Any:
    """Looks up what needs torch on first use.

    Raises:
        ImportError: the name is one of :mod:`memgraft.torch`; ``from memgraft import`` would not show an
            AttributeError's text.
        AttributeError: there is no such name.
    """
    if name == "harvest":
        from memgraft.harvesting import harvest

        return harvest
    if name in importlib.import_module("memgraft.torch").__all__:
        raise ImportError(f"{name} is in the torch half: from memgraft.torch import {name}", name=__name__)
    raise AttributeError(f"module 'memgraft' has no attribute {name!r}")


def __dir__() -> list[str]:
    """What the package offers, for tab completion."""
    return sorted(__all__)
