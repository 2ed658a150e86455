"""Probing: what a donor's values know of the next token, measured on a sample of keys before anything is harvested."""

from memgraft.probing.choosing import Settings, choose_settings
from memgraft.probing.probe import probe
from memgraft.probing.result import Measured, ProbeResult

__all__ = ["Measured", "ProbeResult", "Settings", "choose_settings", "probe"]
