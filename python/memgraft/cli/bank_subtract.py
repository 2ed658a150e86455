"""``memgraft bank subtract``."""

from pathlib import Path
from typing import Annotated

import typer

from memgraft.cli import artifacts, common


@common.verb
def run(
    bank: Annotated[Path, typer.Argument(help="The bank directory.")],
    others: Annotated[list[Path], typer.Argument(help="Banks whose keys are left out.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The bank directory to be.")],
    threads: common.ThreadsOption = None,
    json: common.JsonOption = False,
) -> None:
    """Write the rows of a bank whose keys the others do not have."""
    from memgraft.bank import make

    artifacts.check_folder(out)
    common.keeps(
        f"what is finished is in {out}.partial; the same command goes on from there", Path(f"{out}.partial"), out
    )
    with common.progress("rows") as report:
        made = make.subtract(bank, others, out, progress=report)
    common.emit(artifacts.made_bank(out, made), json=json, title=f"Made {out}")
