"""The table of verbs, and the typer application made of it."""

import importlib
from typing import Annotated

import typer

#: Verb (a space puts it into a group) and the module whose ``run`` function it is. One file a verb; order is that of
#: ``--help``. A module imports only the standard library, typer and :mod:`memgraft.cli.common` at its top.
VERBS: tuple[tuple[str, str], ...] = (
    ("tokenize", "memgraft.cli.tokenize"),
    ("mine", "memgraft.cli.mine"),
    ("keys export", "memgraft.cli.keys_export"),
    ("keys import", "memgraft.cli.keys_import"),
    ("keys union", "memgraft.cli.keys_union"),
    ("keys intersect", "memgraft.cli.keys_intersect"),
    ("keys subtract", "memgraft.cli.keys_subtract"),
    ("plan", "memgraft.cli.plan"),
    ("build", "memgraft.cli.build"),
    ("verify", "memgraft.cli.verify"),
    ("inspect", "memgraft.cli.inspect"),
    ("coverage", "memgraft.cli.coverage"),
    ("lookup", "memgraft.cli.lookup"),
    ("harvest", "memgraft.cli.harvest"),
    ("extend", "memgraft.cli.extend"),
    ("bank merge", "memgraft.cli.bank_merge"),
    ("bank subtract", "memgraft.cli.bank_subtract"),
    ("bank truncate", "memgraft.cli.bank_truncate"),
    ("train", "memgraft.cli.train"),
    ("report", "memgraft.cli.report"),
    ("quickstart", "memgraft.cli.quickstart"),
    ("annotate", "memgraft.cli.annotate"),
    ("bench datapath", "memgraft.cli.bench_datapath"),
)

#: One line for each group of verbs.
GROUPS = {
    "keys": "Combine key sets; take them to Parquet and back.",
    "bank": "Make a bank of others.",
    "bench": "Measure this machine.",
}


def build_app() -> typer.Typer:
    """Returns the application; imports every verb's module, none of which imports anything heavy."""
    app = typer.Typer(
        name="memgraft",
        help="Memory Grafting: frozen donor values for frequent n-grams, looked up by exact longest match.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    groups: dict[str, typer.Typer] = {}
    for name, module in VERBS:
        *path, verb = name.split()
        parent = app
        if path:
            group = path[0]
            if group not in groups:
                groups[group] = typer.Typer(no_args_is_help=True)
                app.add_typer(groups[group], name=group, help=GROUPS[group])
            parent = groups[group]
        parent.command(verb)(importlib.import_module(module).run)
    return app


def _version(value: bool) -> None:
    if value:
        from memgraft import __version__

        typer.echo(f"memgraft {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Options of the command itself."""
