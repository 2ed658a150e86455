"""Notices an adapter whose trained weights were loaded while the graft beside it stayed as it was.

A Trainer's checkpoint of a PEFT model holds the adapter alone. Its resume would bring back the adapter and let the
graft start anew, without a word.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

from torch import nn

from memgraft.data.handle import KEY
from memgraft.errors import GraftError
from memgraft.integrations.transformers.runtime import GraftRuntime, runtimes_of
from memgraft.nn.graft_layer import GraftLayer

_TUNERS = frozenset({"BaseTunerLayer", "AuxiliaryTrainingWrapper"})
# What PEFT keeps of the recipient inside its own layers.
_UNTUNED = ("base_layer.", "original_module.")


class LoadHook:
    """Hook of the decoder before its weights are loaded: notes which of adapter and graft they belong to."""

    def __call__(self, module: nn.Module, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        """Signature of ``load_state_dict`` pre-hooks with the module."""
        runtimes = runtimes_of(module)
        given = [key.removeprefix(prefix) for key in state_dict if key.startswith(prefix)]
        for name, runtime in runtimes.items():
            if any(f"{KEY}.{name}." in key for key in given):
                settle(runtime, loaded=True)
            elif not runtime.off and _some_of_an_adapter(module, given):
                runtime.adapter_is_newer = True
                if runtime.seen_training and not runtime.kept and _trains(module, name):
                    warnings.warn(
                        f"weights of an adapter were loaded, the graft {name!r} stays as it was trained last: give the "
                        "Trainer callbacks=[GraftCallback()], which brings back both, or call load_graft()",
                        stacklevel=2,
                    )


def settle(runtime: GraftRuntime, *, loaded: bool = False) -> None:
    """Takes the graft's weights as they are now for those that belong to the adapter's."""
    runtime.adapter_is_newer = False
    runtime.loaded = runtime.loaded or loaded


def refuse_a_graft_left_behind(decoder: nn.Module) -> None:
    """Refuses to train an adapter that was loaded beside a graft that was not.

    A graft that was loaded and is frozen is as it should be.

    Raises:
        GraftError: there is one.
    """
    for name, runtime in runtimes_of(decoder).items():
        if runtime.adapter_is_newer and (not runtime.loaded or _trains(decoder, name)):
            raise GraftError(
                f"the adapter's weights were loaded and those of the graft {name!r} were not, so that it would start "
                f"anew beside them: a Trainer's checkpoint holds a graft (<checkpoint>/{KEY}/{name}/graft.json) where "
                "the Trainer has callbacks=[GraftCallback()], which brings it back too. Resume with it (with "
                "GraftCallback(missing='anew') where the graft shall start anew); without a Trainer call load_graft(), "
                "or mark_trainable(model) after the adapter is loaded"
            )


def _trains(decoder: nn.Module, name: str) -> bool:
    grafts = (dict(module.named_children()) for key, module in decoder.named_modules() if key.endswith(f".{KEY}"))
    layers = [found[name] for found in grafts if name in found]
    return any(
        parameter.requires_grad
        for layer in layers
        for part in layer.modules()
        if isinstance(part, GraftLayer)
        for parameter in part.parameters()
    )


def _some_of_an_adapter(decoder: nn.Module, names: Iterable[str]) -> bool:
    tuners = tuple(
        f"{name}."
        for name, module in decoder.named_modules()
        if not _TUNERS.isdisjoint(kind.__name__ for kind in type(module).__mro__)
    )
    # PEFT puts resized embeddings of the recipient beside the adapter's own weights.
    return any(name.startswith(tuners) and not any(part in name for part in _UNTUNED) for name in names)
