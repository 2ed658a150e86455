"""``memgraft annotate``: rows beside the tokens, so that epochs skip the lookup."""

from pathlib import Path
from typing import Annotated

import typer

from memgraft.cli import artifacts, common
from memgraft.errors import ArgumentError, ConfigError


@common.verb
@artifacts.reads_corpora
def run(
    reading: artifacts.Reading,
    bank: Annotated[Path, typer.Argument(help="The bank.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory to write.")],
    corpus: Annotated[
        list[Path] | None,
        typer.Option("--corpus", help="Token files, tables or text; rows.npy lies beside their order."),
    ] = None,
    dataset: Annotated[
        Path | None,
        typer.Option("--dataset", help="A saved dataset to copy with two more columns, --column its tokens."),
    ] = None,
    threads: common.ThreadsOption = None,
    json: common.JsonOption = False,
) -> None:
    """Look up every position of a corpus or dataset once."""
    from memgraft.bank import Bank

    if (corpus is None) == (dataset is None):
        raise ArgumentError("expected one of --corpus and --dataset")
    artifacts.check_folder(out)
    opened = Bank.open(bank)
    if dataset is not None:
        _annotate_dataset(opened, dataset, out, reading, threads)
        common.emit({"dataset": out, "bank": opened.fingerprint}, json=json, title="Annotated")
        return
    from memgraft.bank.annotation import annotate

    tokens = reading.open(corpus or [], made=opened)
    common.keeps(f"{out}.partial is kept: run the same command again to go on", Path(f"{out}.partial"), out)
    with common.progress("tokens") as report:
        found = annotate(opened, tokens, out, threads=threads, progress=report)
    facts = dict(found.facts)
    facts["coverage"] = facts["num_hits"] / max(1, facts["num_tokens"])
    common.emit({"annotation": out, **facts}, json=json, title="Annotated")


def _annotate_dataset(bank: object, path: Path, out: Path, reading: artifacts.Reading, threads: int | None) -> None:
    try:
        import datasets
    except ModuleNotFoundError:
        raise ConfigError("--dataset needs the datasets library: run  pip install datasets") from None
    from memgraft.bank import Bank
    from memgraft.bank.annotation import annotate_dataset

    assert isinstance(bank, Bank)
    if out.exists():
        raise ArgumentError(f"{out}: exists; remove it or name another path")
    loaded = datasets.load_from_disk(str(path))
    annotated = annotate_dataset(loaded, bank, column=reading.column, eos_id=reading.eos_id, num_proc=threads)
    annotated.save_to_disk(str(out))
