"""``memgraft bank truncate``."""

from pathlib import Path
from typing import Annotated

import typer

from memgraft.cli import artifacts, common


@common.verb
def run(
    bank: Annotated[Path, typer.Argument(help="The bank directory.")],
    rows: Annotated[int, typer.Option("--rows", min=1, help="Rows to keep.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The bank directory to be.")],
    threads: common.ThreadsOption = None,
    json: common.JsonOption = False,
) -> None:
    """Write the most frequent rows of a bank."""
    from memgraft.bank import make

    artifacts.check_folder(out)
    common.keeps(
        f"what is finished is in {out}.partial; the same command goes on from there", Path(f"{out}.partial"), out
    )
    with common.progress("rows") as report:
        made = make.truncate(bank, rows, out, progress=report)
    common.emit(artifacts.made_bank(out, made), json=json, title=f"Made {out}")
