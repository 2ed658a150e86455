"""``memgraft bank merge``."""

from pathlib import Path
from typing import Annotated

import typer

from memgraft.cli import artifacts, common


@common.verb
def run(
    banks: Annotated[
        list[Path], typer.Argument(help="Bank directories, from the base up; at equal length the later wins.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The bank directory to be.")],
    threads: common.ThreadsOption = None,
    json: common.JsonOption = False,
) -> None:
    """Write one bank that answers as the stack of the given ones does, rows in order of count."""
    from memgraft.bank import make

    artifacts.check_folder(out)
    common.keeps(
        f"what is finished is in {out}.partial; the same command goes on from there", Path(f"{out}.partial"), out
    )
    with common.progress("rows") as report:
        made = make.merge(banks, out, progress=report)
    common.emit(artifacts.made_bank(out, made), json=json, title=f"Made {out}")
