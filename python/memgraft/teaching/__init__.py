"""Teach statements to a trained graft: rows for the ends of their prompts, in an overlay that can be dropped again."""

from memgraft.teaching.facts import Fact, read_facts
from memgraft.teaching.run import REPORT_NAME, Taught, teach
from memgraft.teaching.settings import TeachSettings

__all__ = ["REPORT_NAME", "Fact", "Taught", "TeachSettings", "read_facts", "teach"]
