"""splitmix64's output function, by which places and samples are chosen (docs/FORMAT.md, "mix")."""

import numpy as np
import numpy.typing as npt

GAMMA = 0x9E3779B97F4A7C15
"""What splitmix64 adds before each output: odd, 2**64 over the golden ratio."""


def mix64(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Each number of an array mixed, without `GAMMA` added before: every bit depends on all bits."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
