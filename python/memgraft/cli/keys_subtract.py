"""``memgraft keys subtract``."""

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
    """The first set's keys that no other has."""
    from memgraft import keysets

    artifacts.combine_keys(keysets.subtract, keys, out, overwrite=overwrite, json=json)
