"""Grafts on transformers models: attach, train, generate, save."""

from memgraft.integrations.transformers.attach import detach, disabled, graft, graft_layers
from memgraft.integrations.transformers.callbacks import GraftCallback
from memgraft.integrations.transformers.captured import CapturedStep
from memgraft.integrations.transformers.explain import Explained, explain
from memgraft.integrations.transformers.parameters import (
    mark_trainable,
    optimizer_groups,
    parameter_counts,
    print_trainable_parameters,
)
from memgraft.integrations.transformers.saving import graft_state_dict, load_graft, save_graft
from memgraft.integrations.transformers.telemetry import Telemetry, TelemetryCallback, record_telemetry

__all__ = [
    "CapturedStep",
    "Explained",
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
]
