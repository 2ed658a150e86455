"""``python -m memgraft.cli`` is the ``memgraft`` command."""

from memgraft.cli import main

main()
