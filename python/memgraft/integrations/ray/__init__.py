"""Ray: work of memgraft as tasks of a cluster. ``pip install 'memgraft[ray]'``."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memgraft.integrations.ray.harvesting import harvest
    from memgraft.integrations.ray.mining import mine

_HOMES = {"harvest": "memgraft.integrations.ray.harvesting", "mine": "memgraft.integrations.ray.mining"}
"""Public name and the module that has it; a module is imported when its name is first used."""

__all__ = ["harvest", "mine"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
