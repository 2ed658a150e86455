"""``memgraft bank requantise``: the rows of a bank in another storage type."""

from pathlib import Path
from typing import Annotated

import typer

from memgraft.cli.artifacts import check_folder
from memgraft.cli.common import JsonOption, emit, keeps, progress, verb


@verb
def run(
    bank: Annotated[Path, typer.Argument(help="The bank directory.")],
    dtype: Annotated[str, typer.Option("--dtype", help="Storage: bf16, fp16, fp32, fp8_e4m3 or int8.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The bank directory to be.")],
    json: JsonOption = False,
) -> None:
    """Write the rows of a bank in another storage type, and say what that costs."""
    from memgraft import Bank
    from memgraft.bank.rewrite import requantise

    check_folder(out)
    keeps(f"finished rows are in {out}.partial; the same command goes on from there")
    with progress("rows") as report:
        made = requantise(Bank.open(bank), out, dtype, progress=lambda done, total: report("write", done, total))
    facts = {"bank": str(out), "fingerprint": made.fingerprint, "num_rows": made.num_rows, "dtype": made.dtype}
    storage = made.manifest.donor["storage"]
    emit({**facts, "value_bytes": made.num_rows * made.bytes_per_row, "storage": storage}, json=json, title="bank")
