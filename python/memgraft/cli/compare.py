"""``memgraft compare``: an experiment from a file."""

from pathlib import Path
from typing import Annotated

import typer

from memgraft.cli.common import (
    JsonOption,
    ThreadsOption,
    emit,
    keeps,
    need,
    progress,
    verb,
)
from memgraft.cli.train import print_results


@verb
def run(
    file: Annotated[
        Path, typer.Argument(help="YAML file: bank, train, held_out, tokenizer, out, arms, seeds, recipe.")
    ],
    processes: Annotated[
        int, typer.Option(min=1, help="Arms that train at the same moment, on one GPU each where there are several.")
    ] = 1,
    seconds: Annotated[float | None, typer.Option(min=0.0, help="Start no arm later than this.")] = None,
    threads: ThreadsOption = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Throw away arms of other settings in the file's out; default: refuse.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Train the arms and seeds of a comparison file on the same tokens and compare them; resumable by arm and seed."""
    need("torch", "torch")
    need("transformers", "transformers")
    from memgraft.experiments import read_comparison

    comparison = read_comparison(file)
    keeps(
        f"what is done is in {comparison.out}; the same command goes on from there",
        comparison.out,
    )
    with progress() as report:
        results = comparison.run(processes=processes, seconds=seconds, overwrite=overwrite, progress=report)
    if json:
        emit(results, json=True)
        return
    print_results(results)
