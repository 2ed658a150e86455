"""``memgraft coverage``: how much of a token stream the keys reach."""

from pathlib import Path
from typing import Annotated

import typer

from memgraft.cli import artifacts, common
from memgraft.errors import ArgumentError


@common.verb
@artifacts.reads_corpora
def run(
    reading: artifacts.Reading,
    index: Annotated[Path, typer.Argument(help="Bank directory, index.mgi or keys.mgk.")],
    corpus: artifacts.CorpusPaths,
    part: Annotated[
        str,
        typer.Option(
            help="Documents to look up: all, train, held-out; auto: held-out where keys came from a split of it."
        ),
    ] = "auto",
    threads: common.ThreadsOption = None,
    json: common.JsonOption = False,
) -> None:
    """Count positions with a longest match by order, and those left to the fallback."""
    from memgraft import coverage

    if part not in ("auto", "all", "train", "held-out"):
        raise ArgumentError(f"part: expected auto, all, train or held-out, got {part!r}")
    opened, _, keys = artifacts.open_index(index)
    stream = reading.open(corpus)
    split = keys.metadata.get("split") if keys is not None else None
    if part == "auto":
        part = "held-out" if split and split["of"] == stream.fingerprint else "all"
    if part != "all":
        if keys is None:
            raise ArgumentError(f"--part {part}: expected the key set beside {index}, found none; give --part all")
        train, held_out = artifacts.split_of_keys(keys, stream, "--part all")
        stream = train if part == "train" else held_out
    with common.progress("tokens") as report:
        facts = coverage(opened, stream, keys=keys, threads=threads, progress=report)
    common.emit({"part": part, **facts}, json=json, title=f"Coverage of {index}")
