"""``memgraft plan``: how large a bank to build."""

import sys
from typing import Annotated, Any

import numpy as np
import typer

from memgraft.cli import artifacts, common
from memgraft.cli.sizes import parse_counts
from memgraft.errors import ArgumentError

_TOO_LARGE = 0.25
"""Share of the held-out tokens from which one document's is said: shares are then not of a kind of text."""


@common.verb
@artifacts.reads_corpora
def run(
    reading: artifacts.Reading,
    corpus: artifacts.CorpusPaths,
    budgets: Annotated[
        str, typer.Option(help="Numbers of keys to weigh, by commas, as 10k,100k,1M.")
    ] = "10000,100000,1000000",
    orders: Annotated[str, typer.Option(help="Lengths of keys, 1 to 16, as 2,3,4 or 2-4.")] = "2,3,4",
    policies: Annotated[
        str, typer.Option(help="Ways to choose keys to weigh, by commas: shares, count, documents, gain; or all.")
    ] = "shares",
    min_count: Annotated[int, typer.Option(min=1, help="Fewest occurrences of a key.")] = 2,
    held_out: Annotated[float, typer.Option(help="Share of documents to measure coverage on.")] = 0.05,
    seed: Annotated[int, typer.Option(help="Seed of the choice of held-out documents.")] = 0,
    vocab_size: Annotated[int | None, typer.Option(help="Number of ids; default: the tokenizer's.")] = None,
    memory: Annotated[str, typer.Option(help="Working memory.")] = "4GiB",
    taps: Annotated[str, typer.Option(help="Donor depths, for the bytes of the values.")] = "8",
    value_dim: Annotated[int | None, typer.Option(min=1, help="The donor's width, where no --donor is given.")] = None,
    value_dtype: Annotated[str, typer.Option(help=common.VALUE_DTYPE_HELP)] = "bf16",
    donor: Annotated[
        str | None, typer.Option(help="Times this donor on a sample of the keys (needs --tokenizer).")
    ] = None,
    hot_rows: Annotated[
        str | None, typer.Option(help="Rows to keep on the device, as 10k,100k: what they spare the bus a batch.")
    ] = None,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a batch, for --hot-rows.")] = 32_768,
    threads: common.ThreadsOption = None,
    json: common.JsonOption = False,
) -> None:
    """Weigh budgets and policies: coverage of held-out documents, rows a token, bytes, harvest. Writes nothing."""
    from memgraft.bank.dtypes import DTYPES
    from memgraft.index import NgramIndex
    from memgraft.mining.options import POLICIES
    from memgraft.planning import hot_rows as count_hot_rows
    from memgraft.planning import plan_budgets

    stored = DTYPES[common.storage_type(value_dtype)]
    depths = artifacts.parse_ids("taps", taps)
    if donor is not None and reading.tokenizer is None:
        raise ArgumentError("--donor: expected --tokenizer too, which turns keys into text, got none")
    if donor is not None:
        common.need("torch", "torch")
        common.need("transformers", "transformers")
        from memgraft.harvesting.asked import refuse_donor

        refuse_donor(donor, depths)
    kept = None if hot_rows is None else parse_counts("hot-rows", hot_rows)
    opened = reading.open(corpus)
    with common.progress("tokens") as report:
        keys, points = plan_budgets(
            opened,
            parse_counts("budgets", budgets),
            orders=artifacts.parse_ids("orders", orders),
            policies=list(POLICIES) if policies == "all" else policies.split(","),  # type: ignore[arg-type]
            held_out=held_out,
            seed=seed,
            min_count=min_count,
            vocab_size=vocab_size,
            memory=memory,
            temporary=reading.temporary,
            threads=threads,
            progress=report,
        )
    rate = None
    if donor is not None:
        from memgraft.harvesting import plan_harvest

        with common.progress("keys") as report:
            harvest = plan_harvest(
                keys, recipient_tokenizer=reading.tokenizer, donor=donor, taps=depths, progress=report
            )
        value_dim, rate = harvest.value_dim, harvest.keys_per_second
    row_bytes = None if value_dim is None else stored.bytes_per_row(len(depths), value_dim)
    facts = [
        {
            "policy": point.policy,
            "budget": point.budget,
            "num_keys": point.num_keys,
            "min_count": point.min_count,
            "coverage": point.coverage,
            "fallback_share": 1 - point.coverage,
            "hits": point.hits,
            "rows_per_token": point.rows_per_token,
            "index_bytes": point.index_bytes,
            "value_bytes": None if row_bytes is None else row_bytes * point.num_keys,
            "harvest_seconds": None if rate is None else point.num_keys / rate,
        }
        for point in points
    ]
    _, held = opened.split(held_out=held_out, seed=seed)
    largest = int(np.diff(held.document_starts, append=np.uint64(held.num_tokens)).max())
    hot = []
    if kept is not None:
        found = count_hot_rows(NgramIndex.build(keys), held, kept, batch_tokens=batch_tokens, threads=threads)
        hot = [_hot(point, row_bytes) for point in found]
    if json:
        common.emit(
            {
                "positions": points[0].positions,
                "documents": held.num_documents,
                "largest_document": largest,
                "keys_per_second": rate,
                "row_bytes": row_bytes,
                "budgets": facts,
                **({"hot_rows": hot} if hot else {}),
            },
            json=True,
        )
        return
    _print(facts, points[0].positions)
    common.log(f"covered: of the {held.num_tokens:,} tokens of {held.num_documents:,} documents held out")
    if held.num_documents > 1 and largest > _TOO_LARGE * held.num_tokens:
        common.log(
            f"one document has {largest / held.num_tokens:.0%} of them, so that the shares say much of it alone; "
            "another --seed or a larger --held-out holds out others"
        )
    if hot:
        _print_hot(hot)


def _print(facts: list[dict[str, Any]], positions: int) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    batch = list(facts[0]["rows_per_token"])[-1]
    policies = dict.fromkeys(entry["policy"] for entry in facts)
    for policy in policies:
        some = [entry for entry in facts if entry["policy"] == policy]
        title = f"policy {policy}" if len(policies) > 1 else None
        # All of it fits 80 columns.
        table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
        orders = "/".join(map(str, some[-1]["min_count"]))
        for name in (
            "budget", "keys", f"rarest\n{orders}", "covered", "fallback", "rows a\ntoken", "index", "values",
            "harvest",
        ):  # fmt: skip
            table.add_column(name, justify="right", no_wrap=True)
        for entry in some:
            seconds = entry["harvest_seconds"]
            table.add_row(
                f"{entry['budget']:,}",
                f"{entry['num_keys']:,}",
                "/".join(map(str, entry["min_count"].values())),
                f"{entry['coverage']:.1%}",
                f"{entry['fallback_share']:.1%}",
                f"{entry['rows_per_token'][batch]:.3f}",
                _size(entry["index_bytes"]),
                "-" if entry["value_bytes"] is None else _size(entry["value_bytes"]),
                "-" if seconds is None else f"{seconds:,.0f} s" if seconds < 7200 else f"{seconds / 3600:,.0f} h",
            )
        console.print(table)
    counted = f"{batch:,} tokens" if positions >= batch else f"the {positions:,} tokens held out"
    common.log(f"rows a token: different rows of {counted}; rarest: count of the rarest key of each order")
    if facts[0]["value_bytes"] is None:
        common.log("values: give --value-dim, the donor's width, or --donor; harvest: --donor and --tokenizer")
    elif facts[0]["harvest_seconds"] is None:
        common.log("harvest: give --donor and --tokenizer, and the donor is timed on a sample of the keys")


def _hot(point: Any, row_bytes: int | None) -> dict[str, Any]:
    """What keeping the point's rows on the device means in rows and bytes; the bank is that of the largest budget."""
    moved = point.rows_per_batch - point.hot_per_batch
    return {
        "num_rows": point.num_rows,
        "batch_tokens": point.batch_tokens,
        "rows_per_batch": point.rows_per_batch,
        "hot_per_batch": point.hot_per_batch,
        "saved_share": point.hot_per_batch / point.rows_per_batch if point.rows_per_batch else 0.0,
        "device_bytes": None if row_bytes is None else row_bytes * point.num_rows,
        "moved_bytes_per_batch": None if row_bytes is None else row_bytes * moved,
        "saved_bytes_per_batch": None if row_bytes is None else row_bytes * point.hot_per_batch,
    }


def _print_hot(hot: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    batch = f"of {hot[0]['batch_tokens']:,} tokens"
    for name in ("rows on the device", "their bytes", f"rows of a batch {batch}", "of them there", "moved", "saved"):
        table.add_column(name, justify="right")
    for entry in hot:
        moved = entry["moved_bytes_per_batch"]
        table.add_row(
            f"{entry['num_rows']:,}",
            "-" if entry["device_bytes"] is None else _size(entry["device_bytes"]),
            f"{entry['rows_per_batch']:,.0f}",
            f"{entry['hot_per_batch']:,.0f}",
            "-" if moved is None else _size(moved),
            f"{entry['saved_share']:.1%}",
        )
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    console.print()
    console.print(table)


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
