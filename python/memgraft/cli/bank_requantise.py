"""``memgraft bank requantise``: the rows of a bank in another storage type."""

from pathlib import Path
from typing import Annotated

import typer

from memgraft.cli.artifacts import check_folder
from memgraft.cli.common import (
    VALUE_DTYPE_HELP,
    JsonOption,
    OldDtypeOption,
    ThreadsOption,
    emit,
    keeps,
    progress,
    storage_type,
    verb,
)
from memgraft.errors import ArgumentError


@verb
def run(
    bank: Annotated[Path, typer.Argument(help="The bank directory.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The bank directory to be.")],
    value_dtype: Annotated[str | None, typer.Option("--value-dtype", help=VALUE_DTYPE_HELP)] = None,
    dtype: OldDtypeOption = None,
    threads: ThreadsOption = None,
    json: JsonOption = False,
) -> None:
    """Write the rows of a bank in another storage type, and say what that costs."""
    from memgraft import Bank
    from memgraft.bank.rewrite import requantise

    if value_dtype is None and dtype is None:
        raise ArgumentError("--value-dtype: expected the storage type to write, got none")
    kind = storage_type(value_dtype or "", dtype)
    check_folder(out)
    keeps(f"what is finished is in {out}.partial; the same command goes on from there", Path(f"{out}.partial"), out)
    with progress("rows") as report:
        made = requantise(Bank.open(bank), out, kind, progress=report)
    facts = {"bank": str(out), "fingerprint": made.fingerprint, "num_rows": made.num_rows, "dtype": made.dtype}
    storage = made.manifest.donor["storage"]
    emit({**facts, "value_bytes": made.num_rows * made.bytes_per_row, "storage": storage}, json=json, title="bank")
