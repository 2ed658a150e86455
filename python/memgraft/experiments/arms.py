"""The arms of an experiment: one recipient, one token order, and what is grafted onto it in each.

Every arm starts from the same recipient weights and reads the same batches; arms differ in the graft alone. The table
of arms is in `memgraft.controls`; docs/METHOD.md, section 7, says what each answers. Graft minus shuffled is the first
number: it asks whether it matters *which* donor value a key has.
"""

from collections.abc import Sequence

from memgraft.controls import ARMS, DEFAULT_ARMS, Arm, Source
from memgraft.errors import ConfigError

__all__ = ["ARMS", "DEFAULT_ARMS", "Arm", "Source", "arms_named"]


def arms_named(names: Sequence[str]) -> tuple[Arm, ...]:
    """The arms of these names, in this order.

    Raises:
        ConfigError: an unknown or repeated name, or none.
    """
    if not names or len(set(names)) != len(names):
        raise ConfigError(f"arms: expected distinct names, found {list(names)}")
    if unknown := [name for name in names if name not in ARMS]:
        raise ConfigError(f"arms: {unknown} are unknown; known are {list(ARMS)}")
    return tuple(ARMS[name] for name in names)
