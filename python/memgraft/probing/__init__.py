"""Probing: what a donor's values know of the next token, measured on a sample of keys before anything is harvested."""

from typing import TYPE_CHECKING

from memgraft.deferred import deferred

if TYPE_CHECKING:
    from memgraft.probing.choosing import Settings, choose_settings
    from memgraft.probing.result import Measured, ProbeResult
    from memgraft.probing.run import probe

__all__ = ["Measured", "ProbeResult", "Settings", "choose_settings", "probe"]

__getattr__ = deferred(
    __name__,
    {
        "choosing": ("Settings", "choose_settings"),
        "result": ("Measured", "ProbeResult"),
        "run": ("probe",),
    },
)
