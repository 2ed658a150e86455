"""The ``memgraft`` command: typer and rich, one file a verb, heavy imports inside the functions."""

import io
import sys


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

    build_app()()
