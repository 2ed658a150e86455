"""The ``memgraft`` command: typer and rich, one file a verb, heavy imports inside the functions."""

import io
import os
import sys

INTERRUPTED = 130
"""Exit code after Ctrl-C."""


def main() -> None:
    """Entry point of the console script; exit codes 0 ok, 1 failed check, 2 usage, 130 interrupted."""
    try:
        import rich  # noqa: F401
        import typer  # noqa: F401
    except ModuleNotFoundError as error:
        sys.stderr.write(f"memgraft: the command line needs {error.name}: run  pip install 'memgraft[cli]'\n")
        raise SystemExit(2) from None
    for stream in (sys.stdout, sys.stderr):
        # A name that the stream's encoding does not have must not end a run that is done.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    from memgraft.cli.app import build_app

    try:
        # One name, however it was started: shells complete a command, not `python -m memgraft`.
        build_app()(prog_name="memgraft")
    except SystemExit as end:
        if end.code == INTERRUPTED:
            # Calls that were left at Ctrl-C go on in threads of their own, which the interpreter's end could trip over.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(INTERRUPTED)
        raise
