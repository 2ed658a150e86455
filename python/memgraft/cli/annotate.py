"""``memgraft annotate``: rows beside the tokens, so that epochs skip the lookup."""

from pathlib import Path
from typing import Annotated

import typer

from memgraft.cli import artifacts, common
from memgraft.errors import ArgumentError, ConfigError


@common.verb
def run(
    bank: Annotated[Path, typer.Argument(help="The bank.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory to write.")],
    corpus: Annotated[list[Path] | None, typer.Option("--corpus", help="Token files.")] = None,
    dataset: Annotated[
        Path | None, typer.Option("--dataset", help="A dataset of the datasets library (save_to_disk).")
    ] = None,
    column: Annotated[str, typer.Option("--column", help="The dataset's column of token ids.")] = "input_ids",
    format: artifacts.FormatOption = None,
    dtype: artifacts.DtypeOption = None,
    eos_id: artifacts.EosOption = None,
    file_is_document: artifacts.OneDocumentOption = False,
    tokenizer: artifacts.TokenizerOption = None,
    threads: common.ThreadsOption = None,
    json: common.JsonOption = False,
) -> None:
    """Look up every position of a corpus or dataset once."""
    from memgraft.bank import Bank

    if (corpus is None) == (dataset is None):
        raise ArgumentError("expected one of --corpus and --dataset")
    opened = Bank.open(bank)
    if dataset is not None:
        _annotate_dataset(opened, dataset, out, column, eos_id, threads)
        common.emit({"dataset": out, "bank": opened.fingerprint}, json=json, title="Annotated")
        return
    from memgraft.bank.annotation import annotate

    tokens = artifacts.open_corpus(corpus or [], format, dtype, eos_id, file_is_document, tokenizer)
    common.keeps(f"{out}.partial is kept: run the same command again to go on")
    with common.progress("tokens") as report:
        found = annotate(
            opened, tokens, out, threads=threads, progress=lambda done, total: report("look up", done, total)
        )
    facts = dict(found.facts)
    facts["coverage"] = facts["num_hits"] / max(1, facts["num_tokens"])
    common.emit({"annotation": out, **facts}, json=json, title="Annotated")


def _annotate_dataset(
    bank: object, path: Path, out: Path, column: str, eos_id: int | None, threads: int | None
) -> None:
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
    annotate_dataset(loaded, bank, column=column, eos_id=eos_id, num_proc=threads).save_to_disk(str(out))
