"""The table of verbs, and the typer application made of it."""

import importlib
import inspect
from collections.abc import Callable
from typing import Annotated, get_args

import typer
from typer.models import OptionInfo

from memgraft.cli.examples import EXAMPLES
from memgraft.cli.sizes import Count, Share
from memgraft.names import TOOL

VERBS: tuple[tuple[str, str], ...] = (
    ("quickstart", "memgraft.cli.quickstart"),
    ("tokenize", "memgraft.cli.tokenize"),
    ("split", "memgraft.cli.split"),
    ("plan", "memgraft.cli.plan"),
    ("mine", "memgraft.cli.mine"),
    ("coverage", "memgraft.cli.coverage"),
    ("probe", "memgraft.cli.probe"),
    ("harvest", "memgraft.cli.harvest"),
    ("extend", "memgraft.cli.extend"),
    ("bank merge", "memgraft.cli.bank_merge"),
    ("bank subtract", "memgraft.cli.bank_subtract"),
    ("bank truncate", "memgraft.cli.bank_truncate"),
    ("bank requantise", "memgraft.cli.bank_requantise"),
    ("train", "memgraft.cli.train"),
    ("compare", "memgraft.cli.compare"),
    ("report", "memgraft.cli.report"),
    ("teach", "memgraft.cli.teach"),
    ("inspect", "memgraft.cli.inspect"),
    ("lookup", "memgraft.cli.lookup"),
    ("verify", "memgraft.cli.verify"),
    ("annotate", "memgraft.cli.annotate"),
    ("build", "memgraft.cli.build"),
    ("keys export", "memgraft.cli.keys_export"),
    ("keys import", "memgraft.cli.keys_import"),
    ("keys merge", "memgraft.cli.keys_merge"),
    ("keys union", "memgraft.cli.keys_union"),
    ("keys intersect", "memgraft.cli.keys_intersect"),
    ("keys subtract", "memgraft.cli.keys_subtract"),
    ("bench datapath", "memgraft.cli.bench_datapath"),
)
"""Verb (a space puts it into a group) and the module whose ``run`` function it is. One file a verb; order is that of
``--help``. A module imports only the standard library, typer and :mod:`memgraft.cli.common` at its top."""

HELP = """Memory Grafting: frozen donor values for frequent n-grams, looked up by exact longest match.

In the order of work:\n
  memgraft tokenize text/ --tokenizer tokenizer.json --eos '<eos>' -o corpus\n
  memgraft split corpus --held-out 0.05 -o corpus\n
  memgraft plan corpus-train --budgets 10k,100k,1M\n
  memgraft mine corpus-train --orders 2-4 --budget 1M -o keys.mgk\n
  memgraft coverage keys.mgk corpus-held-out\n
  memgraft probe keys.mgk --tokenizer tokenizer.json --corpus corpus --donor donor/ --taps 4,8,16\n
  memgraft harvest keys.mgk --tokenizer tokenizer.json --donor donor/ --taps 8 -o bank\n
  memgraft train bank --train corpus-train --held-out corpus-held-out --tokenizer tokenizer.json --seeds 0,1,2 -o exp\n
  memgraft report bank --experiment exp --coverage corpus-held-out -o report\n
  memgraft inspect bank --text 'some text'

'memgraft quickstart' does all of it once, on default text or on yours.
"""
"""What ``memgraft --help`` says: the order of work, one example each."""

GROUPS = {
    "keys": "Merge parts; combine key sets; take them to Parquet and back.",
    "bank": "Make a bank of others.",
    "bench": "Measure this machine.",
}
"""One line for each group of verbs."""


def build_app() -> typer.Typer:
    """Returns the application; imports every verb's module, none of which imports anything heavy."""
    app = typer.Typer(
        name="memgraft",
        help=HELP,
        no_args_is_help=True,
        add_completion=True,
        rich_markup_mode="rich",
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
        run = importlib.import_module(module).run
        takes_sizes(run)
        parent.command(verb, epilog=f"Example: {EXAMPLES[name]}")(run)
    return app


def takes_sizes(run: Callable[..., None]) -> None:
    """Lets every whole number among a verb's options be written as people do: ``3k``, ``3e6``, ``3,000``.

    Shares may be written as ``5%``.
    """
    for parameter in inspect.signature(run, eval_str=True).parameters.values():
        hint = parameter.annotation
        kinds = get_args(get_args(hint)[0]) or get_args(hint)[:1]
        if float in kinds and parameter.name in ("held_out", "hits"):
            for option in hint.__metadata__:
                option.parser = Share()
        if int not in kinds:
            continue
        for option in hint.__metadata__:
            if isinstance(option, OptionInfo):
                option.parser = Count(option.min, option.max)


def _version(value: bool) -> None:
    if value:
        typer.echo(TOOL)
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Options of the command itself."""
