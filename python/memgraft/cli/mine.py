"""``memgraft mine``: corpus to key set."""

from pathlib import Path
from typing import Annotated

import typer

from memgraft.cli import artifacts, common
from memgraft.cli.sizes import parse_count
from memgraft.errors import ArgumentError


@common.verb
@artifacts.reads_corpora
def run(
    reading: artifacts.Reading,
    corpus: artifacts.CorpusPaths,
    out: Annotated[Path, typer.Option("--out", "-o", help="Key set to write, such as keys.mgk.")],
    orders: Annotated[str, typer.Option(help="Lengths of keys, 1 to 16, as 2,3,4 or 2-4.")] = "2,3,4",
    budget: Annotated[
        str, typer.Option(help='Keys in all (equal shares), per order as "2=1000,3=500", or "all".')
    ] = "3000000",
    min_count: Annotated[int, typer.Option(min=1, help="Fewest occurrences of a key.")] = 2,
    memory: Annotated[str, typer.Option(help="Working memory.")] = "4GiB",
    reserved: Annotated[str | None, typer.Option(help="Further tokens that are in no key: 0,1,2.")] = None,
    vocab_size: Annotated[int | None, typer.Option(help="Number of ids; default: the tokenizer's.")] = None,
    held_out: Annotated[
        float | None, typer.Option(help="Share of documents to hold out; keys come from the others alone.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the choice of held-out documents.")] = 0,
    temporary: Annotated[
        Path | None, typer.Option(help="Folder for what outgrows the memory; default: that of --out.")
    ] = None,
    threads: common.ThreadsOption = None,
    overwrite: common.OverwriteOption = False,
    json: common.JsonOption = False,
) -> None:
    """Mine the most frequent n-grams of a token corpus, with exact counts."""
    from memgraft import mine

    artifacts.check_output(out, overwrite=overwrite)
    opened = reading.open(corpus)
    if held_out is not None:
        opened, _ = opened.split(held_out=held_out, seed=seed)
    with common.progress("tokens") as report:
        keys = mine(
            opened,
            orders=artifacts.parse_ids("orders", orders),
            budget=parse_budget(budget),
            min_count=min_count,
            memory=memory,
            reserved=artifacts.parse_ids("reserved", reserved),
            vocab_size=vocab_size,
            temporary=temporary or out.absolute().parent,
            threads=threads,
            progress=report,
        )
    keys.save(out)
    mining = keys.metadata["mining"]
    common.emit(
        {
            "keys": out,
            "num_keys": len(keys),
            "num_keys_by_order": keys.num_keys_by_order,
            "frequent_by_order": mining["frequent"],
            "positions_by_order": mining["positions"],
            "min_count": min_count,
            "num_tokens": opened.num_tokens,
            "num_documents": opened.num_documents,
            "split": keys.metadata["split"],
            "corpus": keys.metadata["corpus"]["fingerprint"],
            "fingerprint": keys.fingerprint,
        },
        json=json,
        title=f"Mined {out}",
    )


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
