"""``memgraft keys union``."""

from pathlib import Path
from typing import Annotated

import typer

from memgraft.cli import artifacts, common


@common.verb
def run(
    keys: Annotated[list[Path], typer.Argument(help="Key sets, keys.mgk.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Key set to write, such as keys.mgk.")],
    threads: common.ThreadsOption = None,
    overwrite: common.OverwriteOption = False,
    json: common.JsonOption = False,
) -> None:
    """Every key of any of the sets; counts add up."""
    from memgraft import keysets

    artifacts.combine_keys(keysets.union, keys, out, overwrite=overwrite, json=json)
