"""The quickstart behind ``memgraft quickstart``."""

from memgraft.quickstart.pipeline import Options, run

__all__ = ["Options", "run"]
