"""What the package calls itself where others read it."""

from memgraft import __version__

LOG_NAME = "memgraft"
"""The logger of all that is told beside results."""
TOOL = f"memgraft {__version__}"
"""What made a file or page."""
