"""``memgraft coverage``: how much of a token stream the keys reach."""

from pathlib import Path
from typing import Annotated

import typer

from memgraft.cli import artifacts, common
from memgraft.errors import ArgumentError

#: Share of positions without a match above which the verb warns.
MOST_FALLBACK = 0.3


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
    mined_from: Annotated[
        Path | None,
        typer.Option("--mined-from", help="The corpus that was mined: look for documents that CORPUS shares with it."),
    ] = None,
    threads: common.ThreadsOption = None,
    json: common.JsonOption = False,
) -> None:
    """Count positions with a longest match by order, and those left to the fallback; several paths apart, too."""
    from memgraft import coverage
    from memgraft.corpus.overlapping import WORTH_SAYING
    from memgraft.planning import budget_for

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
    mined = None if mined_from is None else reading.open(mined_from)
    with common.progress("tokens") as report:
        facts = coverage(opened, stream, keys=keys, mined=mined, threads=threads, progress=report)
    domains = {}
    if part == "all" and len(corpus) > 1:
        for path in corpus:
            found = coverage(opened, reading.open([path]), keys=keys, threads=threads)
            domains[str(path)] = {name: found[name] for name in ("positions", "coverage", "fallback_share", "hits")}
    if facts["mined_from_it"]:
        common.log("warning: the keys were mined from these documents, so this is no coverage of new text")
    elif (facts["shared_with_mined"] or 0) >= WORTH_SAYING:
        common.log(
            f"warning: {facts['shared_with_mined']:.0%} of this text is in the corpus that was mined, so coverage of "
            "new text is lower"
        )
    if facts["fallback_share"] > MOST_FALLBACK:
        wanted = None if keys is None else budget_for(keys, stream, 1 - MOST_FALLBACK)
        reach = (
            f"about {wanted:,} keys like these would reach it"
            if wanted
            else "no budget of such keys near this one reaches it"
        )
        common.log(
            f"warning: {facts['fallback_share']:.0%} of positions are left to the fallback, more than "
            f"{MOST_FALLBACK:.0%}; {reach}; memgraft plan measures budgets"
        )
    shown = {"part": part, **facts, **({"domains": domains} if domains else {})}
    common.emit(shown, json=json, title=f"Coverage of {index}")
