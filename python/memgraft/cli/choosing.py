"""The options of `mine` and `keys merge` that say which n-grams become keys."""

import functools
import inspect
import json as jsonlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Concatenate, ParamSpec, get_type_hints

import typer

from memgraft.cli import artifacts, common
from memgraft.cli.sizes import parse_count
from memgraft.errors import ArgumentError, KeySetError

P = ParamSpec("P")


@dataclass(frozen=True, kw_only=True)
class Choosing:
    """How a verb was told to choose keys: one field for each of the shared options."""

    budget: Annotated[
        str, typer.Option("--budget", help='Keys in all (equal shares), per order as "2=1000,3=500", or "all".')
    ] = "3000000"
    min_count: Annotated[int, typer.Option("--min-count", min=1, help="Fewest occurrences of a key.")] = 2
    policy: Annotated[
        str,
        typer.Option(
            "--policy",
            help="shares: the budget of each order by count; count, documents, gain: orders compete by it.",
        ),
    ] = "shares"
    min_documents: Annotated[int, typer.Option("--min-documents", min=0, help="Fewest documents with a key.")] = 0
    exclude: Annotated[
        list[Path] | None,
        typer.Option("--exclude", help="Evaluation text or tokens: keys that occur there are dropped. Repeatable."),
    ] = None
    exclude_from: Annotated[
        int, typer.Option("--exclude-from", min=1, help="Shortest key that --exclude drops; shorter ones are language.")
    ] = 4
    require: Annotated[
        Path | None,
        typer.Option("--require", help="Keys to keep whatever their count: keys.mgk, or lines of token ids."),
    ] = None

    def refuse(self, why: str, way_out: str) -> None:
        """Refuses every one of these options that was given, where a verb cannot heed it.

        Raises:
            ArgumentError: names the first.
        """
        for field in fields(self):
            refuse_given(field.name, getattr(self, field.name) != field.default, why, way_out)

    def arguments(self, reading: artifacts.Reading) -> dict[str, Any]:
        """The arguments of :func:`memgraft.mining.mine` that these options are.

        Raises:
            ArgumentError: ``--exclude-from`` without ``--exclude``.
        """
        if not self.exclude:
            asked = self.exclude_from != type(self).exclude_from
            refuse_given("exclude_from", asked, "without --exclude there is nothing to drop", "give the text too")
        given: dict[str, Any] = {
            "budget": parse_budget(self.budget),
            "min_count": self.min_count,
            "policy": self.policy,
            "min_documents": self.min_documents,
        }
        if self.exclude:
            given |= {"exclude": reading.open(self.exclude), "exclude_from": self.exclude_from}
        if self.require is not None:
            given["require"] = read_keys(self.require)
        return given


def refuse_given(name: str, given: bool, why: str, way_out: str) -> None:
    """Refuses an option that was given where nothing would come of it.

    Raises:
        ArgumentError: it was.
    """
    if given:
        raise ArgumentError(f"--{name.replace('_', '-')}: expected no such option here, because {why}; {way_out}")


def chooses_keys(function: Callable[Concatenate[Choosing, P], None]) -> Callable[P, None]:
    """Gives a verb the options of :class:`Choosing`; it receives them as its first argument."""
    options = {field.name: field for field in fields(Choosing)}

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        chosen: dict[str, Any] = {name: kwargs.pop(name) for name in options if name in kwargs}
        function(Choosing(**chosen), *args, **kwargs)

    hints = get_type_hints(Choosing, include_extras=True)
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[name])
        for name, field in options.items()
    ]
    _, *own = inspect.signature(function, eval_str=True).parameters.values()
    # After the verb's own places come its own options, then the shared ones.
    places = [parameter for parameter in own if parameter.kind is not inspect.Parameter.KEYWORD_ONLY]
    named = [parameter for parameter in own if parameter.kind is inspect.Parameter.KEYWORD_ONLY]
    parameters = [*places, *named, *shared]
    if not named:
        first = [parameter for parameter in places if parameter.default is inspect.Parameter.empty]
        rest = [parameter for parameter in places if parameter.default is not inspect.Parameter.empty]
        parameters = [*first, *(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in rest), *shared]
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapper


def read_keys(path: Path) -> list[tuple[int, ...]]:
    """Keys of a key set, or of a text with one key a line: ids apart by spaces or commas, or a JSON list.

    Raises:
        KeySetError: a line is no key.
    """
    if path.suffix == ".mgk":
        from memgraft import KeySet

        return list(KeySet.open(path))
    keys = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        text = line.strip()
        if not text:
            continue
        try:
            ids = jsonlib.loads(text) if text.startswith("[") else text.replace(",", " ").split()
            keys.append(tuple(int(token) for token in ids))
        except (TypeError, ValueError):
            raise KeySetError(f"{path}: line {number}: expected token ids such as 12 7 99, found {text!r}") from None
    return keys


def parse_budget(text: str) -> int | dict[int, int] | None:
    """``"3000000"`` (or ``"3M"``, ``"3,000,000"``), ``"2=1000,3=500"`` or ``"all"``.

    Raises:
        ArgumentError: none of these.
    """
    try:
        if text == "all":
            return None
        if "=" in text:
            pairs = [part.split("=") for part in text.split(",")]
            return {int(order): parse_count("budget", number) for order, number in pairs}
        return parse_count("budget", text)
    except ValueError:
        message = f'budget: expected a number, "2=1000,3=500" or "all", got {text!r}'
        raise ArgumentError(message) from None


def tell(keys: Any, out: Path, *, json: bool, num_tokens: int, num_documents: int, title: str) -> None:
    """Prints what a mining gave."""
    mining = keys.metadata["mining"]
    common.emit(
        {
            "keys": out,
            "num_keys": len(keys),
            "num_keys_by_order": keys.num_keys_by_order,
            "frequent_by_order": mining["frequent"],
            "positions_by_order": mining["positions"],
            "min_count": mining["min_count"],
            "num_tokens": num_tokens,
            "num_documents": num_documents,
            "split": keys.metadata["split"],
            "corpus": keys.metadata["corpus"]["fingerprint"],
            "fingerprint": keys.fingerprint,
        },
        json=json,
        title=title,
    )
