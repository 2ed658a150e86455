"""Distinct numbers of an array, by sorting.

`numpy.unique` without more asked of it hashes since numpy 2.3, which takes sixty times as long where nearly all of a
million numbers differ.
"""

from typing import TypeVar

import numpy as np
import numpy.typing as npt

Number = TypeVar("Number", bound=np.generic)


def distinct(values: npt.NDArray[Number]) -> npt.NDArray[Number]:
    """The numbers of ``values``, of any shape, ascending, each once."""
    ordered = np.sort(values, axis=None)
    fresh = np.ones(len(ordered), np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=fresh[1:])
    return ordered[fresh]


def are_among(values: npt.NDArray[Number], known: npt.NDArray[Number]) -> npt.NDArray[np.bool_]:
    """Which of ``values``, 1-D, are in ``known``, 1-D and ascending."""
    if not len(known):
        return np.zeros(len(values), np.bool_)
    found: npt.NDArray[np.bool_] = known[np.searchsorted(known[:-1], values)] == values
    return found
