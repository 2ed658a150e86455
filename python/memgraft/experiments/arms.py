"""The arms of an experiment: one recipient, one token order, and what is grafted onto it in each.

Every arm starts from the same recipient weights and reads the same batches; arms differ in the graft alone. The
controls are those of docs/METHOD.md, section 7. Graft minus shuffled is the first number: it asks whether it matters
*which* donor value a key has.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from memgraft.config import Control, FallbackConfig, GraftConfig
from memgraft.errors import ConfigError

Source = Literal["counts", "own_embeddings", "donor_start", "one_slot", "mlp"]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One arm: a name for files, a label for plots, and the control it runs under."""

    name: str
    label: str
    grafted: bool = True
    control: Control | None = None
    source: Source | None = None
    """What replaces the donor's rows, or the memory itself, where no control of :class:`GraftConfig` does."""

    def graft_config(self, *, site: int, tap: int | None, fallback: FallbackConfig, seed: int) -> GraftConfig | None:
        """The graft of this arm, drawn for training from scratch; None where nothing is attached."""
        if not self.grafted:
            return None
        return GraftConfig(
            sites=(site,),
            taps=None if tap is None else (tap,),
            fallback=fallback,
            init="scratch",
            control=self.control,
            seed=seed,
        )


ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm(name="none", label="no memory", grafted=False),
        Arm(name="engram", label="Engram fallback only", control="fallback_only"),
        Arm(name="graft", label="graft"),
        Arm(name="shuffled", label="graft, rows shuffled", control="shuffled"),
        Arm(name="no_fallback", label="graft without fallback", control="no_fallback"),
        Arm(name="random", label="random rows", control="random"),
        Arm(name="constant", label="one constant row", control="constant"),
        Arm(name="trainable", label="trainable rows", control="trainable"),
        Arm(name="trainable_donor", label="donor rows, trained on", control="trainable", source="donor_start"),
        Arm(name="counts", label="rows from next-token counts", source="counts"),
        Arm(name="own_embeddings", label="rows from own embeddings", source="own_embeddings"),
        Arm(name="one_slot", label="fallback of one slot", control="fallback_only", source="one_slot"),
        Arm(name="mlp", label="MLP of equal size", grafted=False, source="mlp"),
    )
}
DEFAULT_ARMS = ("none", "engram", "graft", "shuffled")


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
