"""What a graft needs at run time besides its weights; hangs on the decoder as a plain attribute."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from memgraft.bank import Memory
from memgraft.config import GraftConfig
from memgraft.controls import CONTROLS
from memgraft.errors import GraftError
from memgraft.integrations.transformers.controls import ControlledRows

ATTRIBUTE = "memgraft_runtimes"


@dataclasses.dataclass(eq=False)
class GraftRuntime:
    """One named graft on one decoder.

    The bank is neither parameter nor buffer and a copy of the model shares it.

    Attributes:
        name: the graft's name.
        bank: the open bank, or several as one.
        config: the config it was made with.
        tap_of_site: index into the bank's taps, per site.
        eos_ids: tokens that end a segment.
        max_order: longest key.
        pad_token_id: raw id that the fallback puts left of a segment.
        hidden_dim: width of the recipient.
        shapes: shape of every saved tensor by ``sites.<site>.<name in the layer>``, as they were made.
        controlled: replaces the bank's rows under a control, else ``None``.
        trained_on: fingerprint of the bank that the weights were trained on, where it is another; else ``None``.
        versions: how often each of the recipient's parameters had been written when the graft was attached.
        seen_training: a call has trained; then what is frozen was looked at.
        loaded: the weights came from a file.
        adapter_is_newer: an adapter's weights were loaded since, and the graft's were not.
        kept: a callback writes the weights into a Trainer's checkpoints and brings them back.
        recorder: collects telemetry while somebody records, else ``None``.
    """

    name: str
    bank: Memory
    config: GraftConfig
    tap_of_site: dict[int, int]
    eos_ids: tuple[int, ...]
    max_order: int
    pad_token_id: int
    hidden_dim: int
    shapes: dict[str, tuple[int, ...]]
    controlled: ControlledRows | None
    trained_on: str | None = None
    versions: dict[str, int] = dataclasses.field(default_factory=dict)
    seen_training: bool = False
    loaded: bool = False
    adapter_is_newer: bool = False
    kept: bool = False
    recorder: Any = None

    @property
    def reach(self) -> int:
        """Positions of history that a step reads: for keys, hashes and convolution."""
        fallback = self.config.active_fallback
        hashed = max(fallback.orders) - 1 if fallback is not None else 0
        return max(self.max_order - 1, hashed, self.config.conv_reach, 1)

    @property
    def off(self) -> bool:
        """Whether this graft never adds anything (``control="no_memory"``)."""
        return not CONTROLS[self.config.control].adds

    def __deepcopy__(self, memo: dict[int, Any]) -> GraftRuntime:
        return dataclasses.replace(self, recorder=None)


def runtimes_of(decoder: nn.Module) -> dict[str, GraftRuntime]:
    """The decoder's grafts by name; empty without any."""
    found: dict[str, GraftRuntime] = decoder.__dict__.get(ATTRIBUTE, {})
    return found


def the_runtime(decoder: nn.Module, name: str | None) -> GraftRuntime:
    """The graft of that name, or the only one.

    Raises:
        GraftError: there is none, or several and no name.
    """
    runtimes = runtimes_of(decoder)
    if name is None and len(runtimes) == 1:
        return next(iter(runtimes.values()))
    if name is None or name not in runtimes:
        if runtimes:
            wanted = "one graft" if name is None else f"a graft named {name!r}"
            raise GraftError(f"expected {wanted}, the model has {sorted(runtimes)}: say which with name=")
        raise GraftError(
            f"expected a graft{'' if name is None else f' named {name!r}'}, the model has none; attach one with graft()"
        )
    return runtimes[name]
