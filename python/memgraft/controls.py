"""The one table of controls and arms: what a hit reads under each, what that needs, how it is called and drawn.

A control is what a graft can do instead of reading its memory (`memgraft.GraftConfig`); an arm is what an experiment
compares: a control, or something that experiments put in the place of the rows. docs/METHOD.md, section 7, says what
each of them answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from memgraft.errors import ConfigError

Control = Literal["shuffled", "random", "constant", "trainable", "no_fallback", "no_memory", "fallback_only"]
Source = Literal["counts", "own_embeddings", "donor_start", "one_slot", "mlp", "moe"]
RowSource = Literal["bank", "replaced", "trained", "none"]
Need = Literal["corpus", "recipient"]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One row of the table.

    Attributes:
        name: for files and commands.
        label: for tables and at the end of a curve.
        colour: of its curve and dots.
        dashes: of its curve, in points; None is a solid line.
        words: what a verdict calls the arm; the arms that have some are those that a verdict needs beside the graft.
        grafted: whether a graft is attached.
        control: the control that the graft runs under, None for the real memory.
        source: what an experiment puts in the place of the rows or beside the recipient, where no control does it.
        rows: what a hit reads: rows of the bank, rows put in their place, trained rows, or nothing.
        needs: what rows are made of beside the bank: counts over the training corpus, weights of the recipient.
        from_bank: whether every hit reads one row of the bank's bytes.
        fallback: whether the fallback is built.
        adds: whether the graft adds anything to the hidden state.
        compared: whether it is an arm; a control that adds nothing is not, since it equals the recipient alone.
    """

    name: str
    label: str
    colour: str
    dashes: tuple[float, ...] | None = None
    words: str | None = None
    grafted: bool = True
    control: Control | None = None
    source: Source | None = None
    rows: RowSource = "none"
    needs: tuple[Need, ...] = ()
    from_bank: bool = False
    fallback: bool = True
    adds: bool = True
    compared: bool = True


TABLE = (
    Arm(name="none", label="no memory", colour="#7b8794", dashes=(1, 1.5), words="no memory", grafted=False),
    Arm(
        name="engram", label="Engram fallback only", colour="#c77d1a", dashes=(6, 2, 1, 2), words="the fallback alone",
        control="fallback_only",
    ),
    Arm(name="graft", label="graft", colour="#1257b8", rows="bank", from_bank=True),
    Arm(
        name="shuffled", label="graft, rows shuffled", colour="#8a5fc7", dashes=(4, 2), words="its rows shuffled",
        control="shuffled", rows="replaced", from_bank=True,
    ),
    Arm(
        name="no_fallback", label="graft without fallback", colour="#2a8c6f", control="no_fallback", rows="bank",
        from_bank=True, fallback=False,
    ),
    Arm(name="random", label="random rows", colour="#b8446b", control="random", rows="replaced"),
    Arm(name="constant", label="one constant row", colour="#5b7f2b", control="constant", rows="replaced"),
    Arm(name="trainable", label="trainable rows", colour="#0f8aa3", control="trainable", rows="trained"),
    Arm(
        name="trainable_donor", label="donor rows, trained on", colour="#0a5c6d", control="trainable",
        source="donor_start", rows="trained",
    ),
    Arm(
        name="counts", label="rows from next-token counts", colour="#c2452d", source="counts", rows="replaced",
        needs=("corpus", "recipient"),
    ),
    Arm(
        name="own_embeddings", label="rows from own embeddings", colour="#8c6d1f", source="own_embeddings",
        rows="replaced", needs=("recipient",),
    ),
    Arm(name="one_slot", label="fallback of one slot", colour="#a89a86", control="fallback_only", source="one_slot"),
    Arm(name="mlp", label="MLP of equal size", colour="#4a4e57", grafted=False, source="mlp"),
    Arm(name="moe", label="mixture of experts", colour="#9c3d7a", dashes=(2, 2), grafted=False, source="moe"),
    Arm(
        name="no_memory", label="graft that adds nothing", colour="#7b8794", control="no_memory", rows="bank",
        fallback=False, adds=False, compared=False,
    ),
)  # fmt: skip

ARMS: dict[str, Arm] = {arm.name: arm for arm in TABLE if arm.compared}
"""Every arm, in the order in which tables list them."""
DEFAULT_ARMS = ("none", "engram", "graft", "shuffled")
CONTROLS: dict[str | None, Arm] = {arm.control: arm for arm in TABLE if arm.grafted and arm.source is None}
"""Every control of :data:`Control`, and None for the real memory."""


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
