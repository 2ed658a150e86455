"""``memgraft train``: a comparison from options, of a recipient from scratch."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from memgraft.cli import artifacts
from memgraft.cli.artifacts import Reading, check_folder, reads_corpora
from memgraft.cli.common import (
    JsonOption,
    OverwriteOption,
    ThreadsOption,
    emit,
    keeps,
    log,
    need,
    progress,
    verb,
)
from memgraft.cli.sizes import parse_range
from memgraft.controls import ARMS, DEFAULT_ARMS, arms_named

_OTHER_ARMS = ", ".join(name for name in ARMS if name not in DEFAULT_ARMS)


@verb
@reads_corpora
def run(
    reading: Reading,
    bank: Annotated[Path, typer.Argument(help="The bank directory.")],
    training: Annotated[Path, typer.Option("--train", help="Training corpus: token files, tables or text.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The experiment's directory.")],
    held_out: Annotated[
        Path | None,
        typer.Option(
            "--held-out", help="Corpus of other documents; default: what 'mine --held-out' held out of --train."
        ),
    ] = None,
    arms: Annotated[str, typer.Option(help=f"Arms, by commas; also {_OTHER_ARMS}.")] = ",".join(DEFAULT_ARMS),
    seeds: Annotated[str, typer.Option(help="Seeds, by commas; three or more give intervals over seeds.")] = "0",
    minutes: Annotated[float, typer.Option(min=0.01, help="Budget of all training together.")] = 10.0,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps per arm, instead of --minutes.")] = None,
    width: Annotated[int, typer.Option(min=8, help="Width of the recipient.")] = 256,
    blocks: Annotated[int, typer.Option(min=1, help="Blocks of the recipient.")] = 5,
    site: Annotated[int, typer.Option(min=0, help="The graft is added before this block, 0-based.")] = 1,
    tap: Annotated[
        int | None, typer.Option(min=0, help="The bank's tap that feeds it; needed where it has more.")
    ] = None,
    seq_len: Annotated[int, typer.Option(min=8, help="Tokens per window.")] = 256,
    batch_size: Annotated[int, typer.Option(min=1, help="Windows per step.")] = 8,
    peak_lr: Annotated[float, typer.Option(min=0.0, help="Peak learning rate.")] = 1e-3,
    held_out_windows: Annotated[
        int | None,
        typer.Option(min=0, help="Windows of the final evaluation, 0 for all; default: by the training, at most 400."),
    ] = None,
    curve_points: Annotated[int, typer.Option(min=1, help="Points of the held-out curve.")] = 10,
    threads: ThreadsOption = None,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
) -> None:
    """Train a recipient from scratch in several arms on the same tokens, compare their held-out losses.

    Finished arms are kept, interrupted ones taken up, arms and seeds may be added; other settings are refused. The
    graft's model is saved to OUT/model.
    """
    from memgraft.errors import ArgumentError

    need("torch", "torch")
    need("transformers", "transformers")
    from memgraft.bank import Bank
    from memgraft.corpus import Overlap
    from memgraft.experiments import Comparison, Recipe

    numbers = tuple(parse_range("--seeds", seeds))
    arms_named(arms.split(","))
    check_folder(out)
    opened = Bank.open(bank)

    recipe = Recipe(
        width=width,
        ffn_width=int(width * 8 / 3) // 8 * 8,
        num_blocks=blocks,
        site=site,
        tap=tap,
        seq_len=seq_len,
        batch_size=batch_size,
        peak_lr=peak_lr,
        held_out_windows=held_out_windows,
        curve_points=curve_points,
    )
    keeps(f"what is done is in {out}; the same command goes on from there", out)
    tokenizer = artifacts.tokenizer_of(opened, reading.tokenizer)
    if tokenizer is None:
        raise ArgumentError(
            f"--tokenizer: expected the recipient's tokenizer.json, which the fallback reads, got none; {bank} has none"
        )
    if tap not in (opened.taps if len(opened.taps) > 1 else (None, *opened.taps)):
        raise ArgumentError(f"--tap: expected one of the bank's {', '.join(map(str, opened.taps))}, got {tap}")
    comparison = Comparison(
        bank=bank,
        train=training,
        held_out=held_out,
        tokenizer=tokenizer,
        out=out,
        arms=tuple(arms.split(",")),
        seeds=numbers,
        steps=steps,
        minutes=minutes,
        recipe=recipe,
    )
    train_corpus = reading.open(training, made=opened)
    if held_out is None:
        train_corpus, held_out_corpus = artifacts.split_of_keys(opened.keys, train_corpus, "--held-out", "--held-out")
    else:
        held_out_corpus = reading.open(held_out, made=opened)
    with progress() as report:
        results = comparison.run_on(
            opened,
            train_corpus,
            held_out_corpus,
            overwrite=overwrite,
            command=shlex.join(["memgraft", *sys.argv[1:]]),
            progress=report,
        )
    if json:
        if warning := Overlap.of(results["overlap"]).warning("the training corpus", "the held-out corpus"):
            log(f"warning: {warning}")
        emit(results, json=True)
        return
    print_results(results)


def print_results(results: dict[str, Any]) -> None:
    """The comparisons and losses of an experiment as a table, and the verdict that the report gives, too."""
    from memgraft.report.verdict import not_run_yet, verdict

    facts: dict[str, Any] = {"steps per arm": results["plan"]["steps"], "tokens per arm": results["tokens_per_arm"]}
    for comparison in results["comparisons"]:
        interval = comparison["interval"]
        facts[f"{comparison['first']} minus {comparison['second']}"] = (
            f"{comparison['difference']['overall']:+.4f} nats ({interval['low']:+.4f} to {interval['high']:+.4f}, "
            f"95 % over {comparison['over']})"
        )
    for result in results["arms"]:
        held = result["held_out"]
        facts[f"{result['label']}, seed {result['seed']}"] = f"{held['overall']:.4f}"
    if waiting := not_run_yet(results):
        facts["not run yet"] = waiting
    facts["verdict"] = " ".join(verdict(results).sentences)
    emit(facts, json=False, title="held-out loss, nats per token")
