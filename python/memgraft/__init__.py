"""Memory Grafting: frozen donor values for frequent n-grams, looked up by exact longest match.

``import memgraft`` needs numpy alone; the torch half lives in :mod:`memgraft.torch`.
"""

from memgraft._core import __version__

__all__ = ["__version__"]
