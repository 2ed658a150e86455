"""``memgraft coverage``: how much of a token stream the keys reach."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from memgraft.cli import artifacts, common
from memgraft.errors import ArgumentError

if TYPE_CHECKING:
    from memgraft import Corpus

MOST_FALLBACK = 0.3
"""Share of positions without a match above which the verb warns."""


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
    by_folder: Annotated[
        bool,
        typer.Option("--by-folder", help="Tell apart what lies in each folder inside CORPUS, as several paths are."),
    ] = False,
    by_column: Annotated[
        str | None, typer.Option("--by-column", help="Tell rows of Parquet files apart by this column, such as source.")
    ] = None,
    threads: common.ThreadsOption = None,
    json: common.JsonOption = False,
) -> None:
    """Count positions with a longest match by order, and those left to the fallback; several paths apart, too."""
    from memgraft import coverage
    from memgraft.corpus import is_text
    from memgraft.corpus.overlapping import WORTH_SAYING
    from memgraft.planning import FARTHEST, budget_for

    if part not in ("auto", "all", "train", "held-out"):
        raise ArgumentError(f"part: expected auto, all, train or held-out, got {part!r}")
    if by_folder and by_column is not None:
        raise ArgumentError("--by-column: expected one way to tell documents apart, got --by-folder too")
    opened, bank, keys = artifacts.open_index(index)
    apart = _folders(corpus) if by_folder else corpus
    # Tokens of one folder are no part of those beside it, so a folder of folders is opened as its folders.
    stream = reading.open(apart if by_folder and not is_text(corpus[0]) else corpus, made=bank or keys)
    labels = None if by_column is None else _labels(corpus, by_column, stream.num_documents)
    if by_folder and stream.files:
        labels = _folder_of_each(stream, apart)
    split = keys.metadata.get("split") if keys is not None else None
    if part == "auto":
        part = "held-out" if split and split["of"] == stream.fingerprint else "all"
    if part != "all":
        if labels is not None or by_folder:
            way = "--by-folder" if by_folder else "--by-column"
            raise ArgumentError(
                f"{way}: expected --part all, since whole corpora are told apart, found the {part} part of one that is "
                "split; give --part all, or a corpus that holds that part alone"
            )
        if keys is None:
            raise ArgumentError(f"--part {part}: expected the key set beside {index}, found none; give --part all")
        train, held_out = artifacts.split_of_keys(keys, stream, f"--part {part}", "--part all")
        stream = train if part == "train" else held_out
    mined = None if mined_from is None else reading.open(mined_from, made=bank or keys)
    with common.progress("tokens") as report:
        facts = coverage(opened, stream, keys=keys, mined=mined, domains=labels, threads=threads, progress=report)
    domains: dict[str, Any] = {name: found for name, found in facts["domains"].items() if name}
    if part == "all" and labels is None and len(apart) > 1:
        for path in apart:
            alone = reading.open([path], made=bank or keys, again=True)
            found = coverage(opened, alone, keys=keys, threads=threads)
            domains[str(path)] = {name: found[name] for name in ("positions", "coverage", "fallback_share", "hits")}
    if facts["mined_from_it"]:
        common.log("warning: the keys were mined from these documents, so this is no coverage of new text")
    elif (facts["shared_with_mined"] or 0) >= WORTH_SAYING:
        common.log(
            f"warning: {'' if mined else 'about '}{facts['shared_with_mined']:.0%} of this text is in the corpus that "
            "was mined, so coverage of new text is lower"
        )
    if facts["fallback_share"] > MOST_FALLBACK:
        stacked = bank is not None and len(bank.paths) > 1
        # An index without its key set beside it holds the keys too, in the same order.
        wanted = None if stacked else budget_for(opened.key_set() if keys is None else keys, stream, 1 - MOST_FALLBACK)
        reach = (
            f"about {float(f'{wanted:.2g}'):,.0f} keys like these would leave no more"
            if wanted
            else "how many keys would leave no more is told of one bank alone"
            if stacked
            else f"no budget up to {FARTHEST} times these keys is known to leave {MOST_FALLBACK:.0%} or less"
        )
        common.log(
            f"warning: {facts['fallback_share']:.0%} of positions are left to the fallback, more than "
            f"{MOST_FALLBACK:.0%}; {reach}; memgraft plan measures budgets"
        )
    for name, found in domains.items():
        if found["fallback_share"] > MOST_FALLBACK:
            common.log(f"warning: {name}: {found['fallback_share']:.0%} of positions are left to the fallback")
    if not json:
        # A batch that is larger than the text says the same as the largest that is not.
        rows = facts["unique_rows_per_token"]
        facts["unique_rows_per_token"] = {
            size: share for size, share in rows.items() if size <= max(facts["positions"], min(rows))
        }
    shown = {"part": part, **{name: value for name, value in facts.items() if name != "domains"}}
    if not json and not facts["mined_from_it"] and (facts["shared_with_mined"] or 0) >= WORTH_SAYING:
        # A plain no would contradict the row of what is shared.
        shown["mined_from_it"] = "not as a corpus, but from such text"
    if json and domains:
        shown["domains"] = domains
    common.emit(shown, json=json, title=f"Coverage of {index}")
    if domains and not json:
        _print_domains(domains)


def _print_domains(domains: Mapping[str, Mapping[str, Any]]) -> None:
    """A row for each domain."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column("domain", overflow="fold")
    for name in ("positions", "coverage", "fallback", "hits"):
        table.add_column(name, justify="left" if name == "hits" else "right", no_wrap=name != "hits")
    for name, facts in domains.items():
        shares = (f"{facts[share]:.2%}" for share in ("coverage", "fallback_share"))
        table.add_row(Text(name), str(facts["positions"]), *shares, Text(common.show(facts["hits"])))
    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(table)


def _folders(corpus: list[Path]) -> list[Path]:
    """The folders in the one folder given, but for those that hold nothing of what it is made of."""
    from memgraft.corpus import is_text

    if len(corpus) != 1 or not corpus[0].is_dir():
        raise ArgumentError(f"--by-folder: expected one folder of folders, got {', '.join(map(str, corpus))}")
    found = sorted(path for path in corpus[0].iterdir() if path.is_dir() and not path.name.startswith("."))
    holds = _holds_text if is_text(corpus[0]) else _holds_files
    if empty := [path.name for path in found if not holds(path)]:
        common.log(f"left out, since nothing in them is read: the folders {', '.join(empty)}")
    if not (held := [path for path in found if path.name not in empty]):
        raise ArgumentError(f"--by-folder: expected folders in {corpus[0]}, found none; name the paths one by one")
    return held


def _folder_of_each(stream: "Corpus", folders: list[Path]) -> list[str]:
    """The folder of ``folders`` that each document of a text lies in; "" for a file beside them."""
    names = [next((str(folder) for folder in folders if folder in file.parents), "") for file in stream.files]
    ends = np.cumsum(list(stream.files.values()))
    places = np.searchsorted(ends, stream.document_starts[:-1].astype(np.int64), side="right")
    return [names[place] for place in places.tolist()]


def _holds_text(folder: Path) -> bool:
    from memgraft.corpus.text import is_text, read_documents

    return is_text(folder) and any(read_documents(folder))


def _holds_files(folder: Path) -> bool:
    return any(path.is_file() for path in folder.rglob("*"))


def _labels(corpus: list[Path], column: str, num_documents: int) -> list[str]:
    from memgraft.corpus.tables import is_table, read_labels

    if not all(is_table(path) for path in corpus):
        raise ArgumentError("--by-column: expected Parquet files or a saved dataset, got others; give --by-folder")
    labels = read_labels(corpus, column)
    if len(labels) != num_documents:
        raise ArgumentError(
            f"--by-column: expected a document in each of the {len(labels)} rows, found {num_documents} documents; "
            "rows that hold several, or that --eos-id cuts, cannot be told apart"
        )
    return labels
