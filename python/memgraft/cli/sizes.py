"""Numbers on a command line, as :mod:`memgraft.sizes` reads them."""

import re

import typer

from memgraft.errors import ArgumentError
from memgraft.sizes import parse_count, parse_counts, parse_range

__all__ = ["Count", "Share", "parse_count", "parse_counts", "parse_range"]

_PLAIN = re.compile(r"-?\d+")


class Count:
    """Parses a whole number of a command line as :func:`parse_count` does, between two bounds."""

    __name__ = "number"

    def __init__(self, least: float | None = None, most: float | None = None) -> None:
        self.least, self.most = least, most

    def __call__(self, text: str | int) -> int:
        """``text`` as an int; a default comes as one.

        Raises:
            typer.BadParameter: it is no number, or out of bounds.
        """
        try:
            number = text if isinstance(text, int) else int(text) if _PLAIN.fullmatch(text) else parse_count("", text)
        except ArgumentError as error:
            raise typer.BadParameter(str(error).removeprefix(": ")) from None
        if (self.least is not None and number < self.least) or (self.most is not None and number > self.most):
            bounds = f"at least {self.least:g}" if self.most is None else f"{self.least:g} to {self.most:g}"
            raise typer.BadParameter(f"expected {bounds}, got {number}")
        return number


class Share:
    """Parses a share between 0 and 1 of a command line, also as ``5%``; whoever takes it checks the bounds."""

    __name__ = "share"

    def __call__(self, text: str | float) -> float:
        """``text`` as a float; a default comes as one.

        Raises:
            typer.BadParameter: it is no number.
        """
        try:
            if isinstance(text, str) and text.strip().endswith("%"):
                return float(text.strip()[:-1]) / 100
            return float(text)
        except ValueError:
            raise typer.BadParameter(f"expected a share such as 0.05 or 5%, got {text!r}") from None
