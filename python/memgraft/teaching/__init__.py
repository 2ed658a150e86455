"""Teach statements to a trained graft: rows for the ends of their prompts, in an overlay that can be dropped again."""

from typing import TYPE_CHECKING

from memgraft.deferred import deferred
from memgraft.teaching.facts import Fact, read_facts
from memgraft.teaching.settings import TeachSettings

if TYPE_CHECKING:
    from memgraft.teaching.run import REPORT_NAME, Taught, teach

__all__ = ["REPORT_NAME", "Fact", "Taught", "TeachSettings", "read_facts", "teach"]

__getattr__ = deferred(__name__, {"run": ("REPORT_NAME", "Taught", "teach")})
