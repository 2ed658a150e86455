"""What json cannot write by itself, as what it can."""

import os
from typing import Any


def plain(value: Any) -> Any:
    """Numbers and arrays of numpy as Python's, paths as text; ``json.dumps(..., default=plain)``.

    Raises:
        TypeError: it is something else.
    """
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"cannot write {type(value).__name__} as JSON")
