"""Probing: what a donor's values know of the next token, measured on a sample of keys before anything is harvested."""

from memgraft.probing.choosing import Settings, choose_settings
from memgraft.probing.probe import Measured, ProbeResult, probe

__all__ = ["Measured", "ProbeResult", "Settings", "choose_settings", "probe"]
