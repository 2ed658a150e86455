"""``python -m memgraft`` is the ``memgraft`` command."""

from memgraft.cli import main

main()
