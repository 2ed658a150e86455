"""The torch half in one namespace; each name is imported when it is first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memgraft.config import FallbackConfig, GraftConfig
    from memgraft.data import GraftCollator, MemoryBatch, prefetch
    from memgraft.integrations.transformers import (
        CapturedStep,
        GraftCallback,
        Telemetry,
        TelemetryCallback,
        detach,
        disabled,
        explain,
        graft,
        graft_layers,
        graft_state_dict,
        load_graft,
        mark_trainable,
        optimizer_groups,
        parameter_counts,
        print_trainable_parameters,
        record_telemetry,
        save_graft,
    )
    from memgraft.nn import CompressedVocabulary, GraftLayer, HashFallback, RowwiseAdamW

_HOMES = {
    "memgraft.config": ("FallbackConfig", "GraftConfig"),
    "memgraft.data": ("GraftCollator", "MemoryBatch", "prefetch"),
    "memgraft.integrations.transformers": (
        "CapturedStep",
        "GraftCallback",
        "Telemetry",
        "TelemetryCallback",
        "detach",
        "disabled",
        "explain",
        "graft",
        "graft_layers",
        "graft_state_dict",
        "load_graft",
        "mark_trainable",
        "optimizer_groups",
        "parameter_counts",
        "print_trainable_parameters",
        "record_telemetry",
        "save_graft",
    ),
    "memgraft.nn": ("CompressedVocabulary", "GraftLayer", "HashFallback", "RowwiseAdamW"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "CapturedStep",
    "CompressedVocabulary",
    "FallbackConfig",
    "GraftCallback",
    "GraftCollator",
    "GraftConfig",
    "GraftLayer",
    "HashFallback",
    "MemoryBatch",
    "RowwiseAdamW",
    "Telemetry",
    "TelemetryCallback",
    "detach",
    "disabled",
    "explain",
    "graft",
    "graft_layers",
    "graft_state_dict",
    "load_graft",
    "mark_trainable",
    "optimizer_groups",
    "parameter_counts",
    "prefetch",
    "print_trainable_parameters",
    "record_telemetry",
    "save_graft",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
