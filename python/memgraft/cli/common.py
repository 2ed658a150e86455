"""What every verb shares: errors to exit codes, ``--json``, progress, and what an interrupted run keeps.

A verb is a function decorated with :func:`verb`; its result goes to stdout through :func:`emit`, everything else
(logs, progress, errors) to stderr.
"""

import functools
import json as jsonlib
import logging
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import typer

from memgraft.bank.dtypes import DTYPES
from memgraft.cli import INTERRUPTED
from memgraft.errors import ArgumentError, ConfigError, MemgraftError
from memgraft.names import LOG_NAME
from memgraft.plain import plain

LOG_SECONDS = 15.0
"""Seconds between two lines of progress where stderr is not a terminal."""
FOLDED = 16
"""Lists longer than this are folded in tables."""

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, INTERRUPTED

JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object on stdout.")]
ThreadsOption = Annotated[int | None, typer.Option("--threads", min=1, help="At most so many; default: every core.")]

OldDtypeOption = Annotated[str | None, typer.Option("--dtype", hidden=True)]

OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Write over what is there under the name of --out; default: refuse.")
]

_OTHER_UNITS = ("open ", "budgets", "fits", "measure ", "merge", "teach", "train arms")
"""Beginnings of phases that count something else than their verb: a donor is opened tensor by tensor, runs of mining
are merged record by record or group by group."""

Counted = Callable[[int, int], None]
"""``progress(done, total)`` of one phase."""

_SHARE = re.compile(r"(^|[ _])(coverage|share|shared_with_mined|held_out)$")
"""Names of facts that are shares."""
_LOSS = re.compile(r"\bloss\b|\bseed \d+$")
"""Names of losses, of which differences in the fourth decimal are read; an experiment's are named by arm and seed."""

P = ParamSpec("P")
T = TypeVar("T")

_NOTHING = "nothing was written"
_kept: tuple[str, tuple[Path, ...]] = (_NOTHING, ())


def keeps(what: str, *places: Path) -> None:
    """Sets what is left on the disk if the run is interrupted from here on, as in "nothing was written".

    Args:
        what: says what lies in the first of ``places``; true once that is there.
        places: the unfinished result, then the finished one that takes its place.
    """
    global _kept
    _kept = (what, places)


def what_is_kept() -> str:
    """What an interrupted run may say of the disk as it is now."""
    what, places = _kept
    there = [place for place in places if place.is_file() or (place.is_dir() and any(place.iterdir()))]
    if not places or places[0] in there:
        return what
    return f"{there[0]} is there" if there else _NOTHING


def verb(function: Callable[P, None]) -> Callable[P, None]:
    """Makes a verb of ``function``: typed errors become one message on stderr and an exit code.

    Usage errors (:class:`ArgumentError`, :class:`ConfigError`) exit with 2, every other :class:`MemgraftError` and
    :class:`OSError` with 1, Ctrl-C with 130. An option ``threads`` of the verb bounds whatever it computes with.
    """

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        keeps(_NOTHING)
        threads = kwargs.get("threads")
        try:
            with at_most(threads if isinstance(threads, int) else None):
                function(*args, **kwargs)
        except (ArgumentError, ConfigError) as error:
            fail(str(error), EXIT_USAGE)
        except MemgraftError as error:
            fail(str(error))
        except BrokenPipeError:
            # The reader of our stdout went away (`| head`); point stdout at nothing so that the exit flush is quiet.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(EXIT_FAILED) from None
        except OSError as error:
            name = f"{error.filename}: " if error.filename else ""
            fail(f"{name}{error.strerror or error}")
        except KeyboardInterrupt:
            fail(f"interrupted; {what_is_kept()}", EXIT_INTERRUPTED)

    return wrapper


def fail(message: str, code: int = EXIT_FAILED) -> None:
    """Prints ``message`` on stderr and leaves with ``code``.

    Raises:
        typer.Exit: always.
    """
    sys.stderr.write(f"memgraft: {as_options(message)}\n")
    raise typer.Exit(code)


_OPTIONS = {
    name: f"--{name.replace('_', '-')}"
    for name in (
        *("bank", "column", "dtype", "eos_id", "format", "held_out", "prefix", "resume", "seed", "separator"),
        *("sketch", "temporary", "tokenizer", "vocab_size"),
    )
}
"""Arguments of the library that errors name, and the option of the command line that gives them."""
_ARGUMENT = re.compile(
    # What a path holds, as in data/seed=3/, is no argument.
    r"(?<![\w/])(documents=\"file\"|(\w+)=(?:\"(\w+)\"|'(\S+?)'|<([\w.]+)>|True\b|(?=[\s,;:)]|\.?(?:\s|$))))"
)


def as_options(message: str) -> str:
    """``message`` with the library's arguments as options: ``dtype="uint32"`` becomes ``--dtype uint32``."""

    def option(match: re.Match[str]) -> str:
        whole, name, value, quoted, example = match.groups()
        if whole == 'documents="file"':
            return "--file-is-document"
        given = value or (quoted and f"'{quoted}'") or (example and example.upper())
        return whole if name not in _OPTIONS else f"{_OPTIONS[name]} {given}" if given else _OPTIONS[name]

    return _ARGUMENT.sub(option, message)


def log(message: str) -> None:
    """One line for the person who watches, on stderr."""
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()


def emit(facts: Mapping[str, Any], *, json: bool, title: str | None = None) -> None:
    """Prints a verb's result on stdout: one JSON object, or a table of the same facts."""
    if json:
        sys.stdout.write(jsonlib.dumps(facts, indent=2, default=plain) + "\n")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column()
    # What does not fit goes on in the next line: a fingerprint cut short is of no use.
    table.add_column(overflow="fold")
    for name, value in flatten(facts):
        table.add_row(Text(name.replace("_", " ")), Text(show(value, name)))
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    if title is not None:
        # In one piece and as it is, however narrow the table: it names a path, which is copied and may have brackets.
        console.print(Text(title, style="table.title"), soft_wrap=True)
    console.print(table)


def flatten(facts: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Facts with those inside mappings as entries of their own, but for mappings of numbers, which fit one line."""
    for name, value in facts.items():
        if isinstance(value, Mapping) and any(isinstance(item, (str, Mapping)) for item in value.values()):
            yield from flatten({f"{name} {inner}": item for inner, item in value.items()})
        else:
            yield name, value


def show(value: Any, name: str = "") -> str:
    """``value`` for a reader: numbers as options take them, mappings as ``2: 10, 3: 20``, long lists folded.

    What is called a share is one between 0 and 1 in JSON and in Python, and a percentage here.
    """
    value = plain(value) if not isinstance(value, (str, bool, int, float, Mapping, list, tuple, type(None))) else value
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case int():
            return str(value)
        case float() if _SHARE.search(name):
            return f"{100 * value:.4g}%"
        case float() if _LOSS.search(name):
            return f"{value:.4f}"
        case float():
            return f"{value:.4g}"
        case Mapping():
            return ", ".join(f"{key}: {show(item, str(key))}" for key, item in value.items()) or "-"
        case list() | tuple() if len(value) > FOLDED:
            return f"{show(value[: FOLDED // 2])}, … ({len(value)} in all; --json has them)"
        case list() | tuple():
            return ", ".join(show(item) for item in value) or "-"
        case _:
            return str(value)


@contextmanager
def progress(unit: str = "", *, noted: Collection[str] = ()) -> Iterator[Callable[[str, int, int], None]]:
    """Yields ``report(phase, done, total)``: a bar with rate and time left on stderr; a new phase starts a new bar.

    Where stderr is not a terminal, a line every :data:`LOG_SECONDS` tells how far a phase is, and one that it ended;
    not of the phases ``noted``, since the work itself writes lines of these.
    """
    import time

    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            known = task.speed and not task.description.startswith(_OTHER_UNITS)
            return Text(f"{_short(task.speed or 0)} {unit}/s" if known else "")

    console = Console(stderr=True)
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        Rate(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    tasks: dict[str, Any] = {}
    ended: set[str] = set()
    spoke = time.monotonic()

    def report(phase: str, done: int, total: int) -> None:
        nonlocal spoke
        if phase not in tasks:
            tasks[phase] = bars.add_task(phase, total=max(total, 1))
        bars.update(tasks[phase], completed=done, total=max(total, 1))
        if console.is_terminal or phase in ended or phase in noted:
            return
        if done >= total:
            ended.add(phase)
            log(phase if phase.startswith(_OTHER_UNITS) else f"{phase}: {total} {unit}".rstrip())
        elif time.monotonic() - spoke >= LOG_SECONDS:
            log(f"{phase}: {done} of {total} {'' if phase.startswith(_OTHER_UNITS) else unit}".rstrip())
        else:
            return
        spoke = time.monotonic()

    with bars:
        yield report


def _short(value: float) -> str:
    for suffix in ("", "k", "M"):
        if value < 1000:
            return f"{value:.3g}{suffix}"
        value /= 1000
    return f"{value:.3g}G"


_SHORT = {"fp8": "fp8_e4m3"}
"""Short names of storage types."""


def _help_of_types() -> str:
    named = [name + "".join(f" ({short})" for short, long in _SHORT.items() if long == name) for name in DTYPES]
    return f"Storage: {', '.join(named[:-1])} or {named[-1]}."


VALUE_DTYPE_HELP = _help_of_types()


def storage_type(value_dtype: str, old: str | None = None) -> str:
    """The storage type of ``--value-dtype``, or of ``--dtype``, which some verbs called it once.

    Raises:
        ArgumentError: there is no such type.
    """
    asked = old or value_dtype
    found = _SHORT.get(asked, asked)
    if found not in DTYPES:
        raise ArgumentError(f"--value-dtype {asked}: expected one of {', '.join([*DTYPES, *_SHORT])}")
    return found


class _Told(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        log(f"warning: {record.getMessage()}")


@contextmanager
def warnings_told() -> Iterator[None]:
    """What the package logs as a warning is a line of the verb inside."""
    handler = _Told(logging.WARNING)
    logging.getLogger(LOG_NAME).addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger(LOG_NAME).removeHandler(handler)


@contextmanager
def at_most(threads: int | None) -> Iterator[None]:
    """Bounds the threads of what this process computes with meanwhile: torch, tokenizers, and memgraft's own."""
    if threads is None:
        yield
        return
    from memgraft import system

    # Libraries that are loaded later look there; torch alone can be told once it is loaded.
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    torch = sys.modules.get("torch")
    used = None if torch is None else torch.get_num_threads()
    os.environ.update(dict.fromkeys(names, str(threads)))
    system.limit_threads(threads)
    if torch is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        system.limit_threads(None)
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        if torch is not None:
            torch.set_num_threads(used)


def need(module: str, extra: str) -> None:
    """Says which extra to install where ``module`` is missing; imports nothing: a verb looks at its options first.

    Raises:
        ConfigError: ``module`` is not installed.
    """
    from importlib.util import find_spec

    if find_spec(module) is None:
        raise ConfigError(
            f"this verb needs the package {module}, which is not installed: pip install 'memgraft[{extra}]'"
        )
