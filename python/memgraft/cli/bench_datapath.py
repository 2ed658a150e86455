"""``memgraft bench datapath``: whether this machine feeds a training run."""

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from memgraft.cli import common


@common.verb
def run(
    bank: Annotated[Path, typer.Option("--bank", help="The bank.")],
    batch: Annotated[int, typer.Option("--batch", min=1, help="Positions per batch (batch size x tokens).")] = 65_536,
    hits: Annotated[
        float, typer.Option("--hits", help="Share of positions with a row; see `memgraft coverage`.")
    ] = 0.6,
    tokens_per_second: Annotated[
        float | None, typer.Option("--tokens-per-second", min=1, help="What the training run consumes.")
    ] = None,
    evict: Annotated[
        bool, typer.Option("--evict", help="Drop the values from the system's cache first, to time cold reads.")
    ] = False,
    cold_reader: Annotated[
        str, typer.Option("--cold-reader", help="How rows that are not in memory are read: pread or io_uring.")
    ] = "pread",
    resident: Annotated[bool, typer.Option("--resident", help="Copy the values into memory first.")] = False,
    threads: common.ThreadsOption = None,
    json: common.JsonOption = False,
) -> None:
    """Measure dedup, warm gathers and cold reads of a bank; exit 1 where warm rows come slower than needed."""
    from memgraft.bank import Bank
    from memgraft.bank.measure import measure_datapath

    facts = measure_datapath(
        Bank.open(bank, resident=resident, cold_reader=cast(Any, cold_reader)),
        batch=batch,
        hits=hits,
        tokens_per_second=tokens_per_second,
        threads=threads,
        evict=evict,
    )
    common.emit(facts, json=json, title="Data path")
    if facts.get("warm_margin", 1.0) < 1.0:
        common.fail(
            f"{facts['warm_rows_per_second']:.0f} rows/s are available, {facts['needed_rows_per_second']:.0f} needed: "
            "add threads, hold the bank resident, or store 8-bit rows"
        )
