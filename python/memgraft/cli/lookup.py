"""``memgraft lookup``: tokens to rows."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from memgraft.cli import artifacts, common
from memgraft.cli.inspect import load_recipient_tokenizer
from memgraft.errors import ArgumentError, CorpusError


@common.verb
def run(
    index: Annotated[Path, typer.Argument(help="Bank directory, index.mgi or keys.mgk.")],
    tokens: Annotated[list[int] | None, typer.Argument(help="Token ids, one sequence.")] = None,
    file: Annotated[
        str | None, typer.Option("--file", help="Text file of token ids, one sequence a line; - is standard input.")
    ] = None,
    text: Annotated[str | None, typer.Option("--text", help="Text to tokenise and look up.")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", help="For --text; default: the tokenizer.json beside the index.")
    ] = None,
    eos_id: Annotated[int | None, typer.Option("--eos-id", min=0, help="Token that delimits documents.")] = None,
    threads: common.ThreadsOption = None,
    json: common.JsonOption = False,
) -> None:
    """Look up the longest key that ends at each token."""
    if (bool(tokens), bool(file), text is not None).count(True) != 1:
        raise ArgumentError("lookup: expected token ids as arguments or --file or --text, got none or several")
    opened, bank, keys = artifacts.open_index(index)
    needed = text is not None or tokenizer is not None
    loaded = load_recipient_tokenizer(index, tokenizer, bank, keys, needed=needed)
    if text is not None:
        sequences = [loaded.encode(text, add_special_tokens=False).ids]
    else:
        sequences = read_sequences(file) if file else [list(tokens or ())]
    spell = None if loaded is None else artifacts.speller(loaded)
    found = []
    for sequence in sequences:
        rows, orders = opened.lookup(as_ids(sequence), eos_id=eos_id)
        found.append({"tokens": sequence, "rows": rows.tolist(), "orders": orders.tolist()})
    if json:
        common.emit({"sequences": found}, json=True)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    for answer in found:
        table = Table(box=None, pad_edge=False)
        for name in ("token", "order", "row", "count", "key", *(["text"] if spell is not None else [])):
            table.add_column(name, justify="left" if name in ("key", "text") else "right")
        for token, row, order in zip(answer["tokens"], answer["rows"], answer["orders"], strict=True):
            if row < 0:
                table.add_row(str(token), "-", "miss", "", "")
            else:
                key = opened.key(row)
                shown = [] if spell is None else [Text(repr(spell(key)))]
                table.add_row(str(token), str(order), str(row), str(opened.count(row)), " ".join(map(str, key)), *shown)
        Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(table)


def read_sequences(file: str) -> list[list[int]]:
    """One sequence of ids a line; empty lines are left out.

    Raises:
        CorpusError: something that is no number.
    """
    text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8", errors="replace")
    sequences = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            sequence = [int(word) for word in line.split()]
        except ValueError:
            raise CorpusError(f"{file}: line {number}: expected token ids, found {line.strip()[:40]!r}") from None
        if sequence:
            sequences.append(sequence)
    return sequences


def as_ids(sequence: list[int]) -> "list[int]":
    """The sequence, if every entry can be a token id at all.

    Raises:
        ArgumentError: a negative number, or one beyond 64 bits.
    """
    bad = next((token for token in sequence if not 0 <= token < 2**63), None)
    if bad is not None:
        raise ArgumentError(f"tokens: expected token ids of 0 and more, got {bad}")
    return sequence
