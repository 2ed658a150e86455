"""Names of a package that are imported when they are first asked for, since what defines them imports torch."""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def deferred(package: str, homes: Mapping[str, tuple[str, ...]]) -> Callable[[str], Any]:
    """The ``__getattr__`` of ``package`` for the names that its modules ``homes`` define.

    So its light modules can be imported alone: a verb looks at what it was told before it waits for torch.
    """
    modules = {name: module for module, names in homes.items() for name in names}

    def attribute(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{package}.{modules[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return attribute
