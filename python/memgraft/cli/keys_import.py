"""``memgraft keys import``: Parquet to key set."""

from pathlib import Path
from typing import Annotated

import typer

from memgraft.cli import artifacts, common
from memgraft.cli.choosing import parse_budget


@common.verb
def run(
    tables: Annotated[list[Path], typer.Argument(help="Parquet files, or folders of them: keys with counts.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Key set to write, such as keys.mgk.")],
    vocab_size: Annotated[int | None, typer.Option(help="Number of ids; default: what the export recorded.")] = None,
    reserved: Annotated[str | None, typer.Option(help="Tokens that are in no key; default: as recorded.")] = None,
    budget: Annotated[
        str, typer.Option(help='Keys in all (equal shares), per order as "2=1000,3=500", or "all".')
    ] = "all",
    min_count: Annotated[int, typer.Option(min=1, help="Fewest occurrences of a key, after summing.")] = 1,
    tokens: Annotated[
        str, typer.Option(help="Column of lists of ids, or columns by position: t0,t1,t2 (null past a key's end).")
    ] = "tokens",
    count: Annotated[str, typer.Option(help="Column of occurrences.")] = "count",
    documents: Annotated[str, typer.Option(help="Column of document frequencies; need not be there.")] = "documents",
    memory: Annotated[str, typer.Option(help="Working memory.")] = "4GiB",
    temporary: Annotated[Path | None, typer.Option(help="Folder for temporary data; default: that of --out.")] = None,
    threads: common.ThreadsOption = None,
    overwrite: common.OverwriteOption = False,
    json: common.JsonOption = False,
) -> None:
    """Read keys with counts from Parquet, in any order; counts of equal keys are summed."""
    from memgraft.mining import Columns, import_counts

    artifacts.check_output(out, overwrite=overwrite)
    common.need("pyarrow", "parquet")
    names = tokens.split(",")
    keys = import_counts(
        tables,
        vocab_size=vocab_size,
        reserved=None if reserved is None else artifacts.parse_ids("reserved", reserved),
        budget=parse_budget(budget),
        min_count=min_count,
        columns=Columns(tokens=names if len(names) > 1 else tokens, count=count, documents=documents),
        memory=memory,
        temporary=temporary or out.absolute().parent,
    )
    keys.save(out)
    common.emit(
        {
            "keys": out,
            "num_keys": len(keys),
            "num_keys_by_order": keys.num_keys_by_order,
            "fingerprint": keys.fingerprint,
        },
        json=json,
        title=f"Imported {out}",
    )
