"""``memgraft train``: arms over one recipient and one token order."""

from pathlib import Path
from typing import Annotated

import typer

from memgraft.cli.artifacts import Reading, check_folder, reads_corpora
from memgraft.cli.common import JsonOption, emit, keeps, need, progress, verb


@verb
@reads_corpora
def run(
    reading: Reading,
    bank: Annotated[Path, typer.Argument(help="The bank directory.")],
    training: Annotated[Path, typer.Option("--train", help="Training corpus: token files, tables or text.")],
    held_out: Annotated[Path, typer.Option("--held-out", help="Corpus of other documents, for evaluation.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The experiment's directory.")],
    arms: Annotated[str, typer.Option(help="Arms, by commas; also no_fallback, random, constant, trainable.")] = (
        "none,engram,graft,shuffled"
    ),
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
    json: JsonOption = False,
) -> None:
    """Train a recipient from scratch in several arms on the same tokens, compare their held-out losses.

    Finished arms are kept, interrupted ones taken up; the graft's model is saved to OUT/model.
    """
    from memgraft.errors import ArgumentError

    if reading.tokenizer is None:
        raise ArgumentError("--tokenizer: expected the recipient's tokenizer.json, which the fallback reads, got none")
    need("torch", "torch")
    need("transformers", "transformers")
    from memgraft.bank import Bank
    from memgraft.experiments import Recipe, run_experiment

    try:
        numbers = tuple(int(seed) for seed in seeds.split(","))
    except ValueError:
        raise ArgumentError(f"--seeds {seeds}: expected whole numbers such as 0 or 0,1,2") from None
    recipe = Recipe(
        width=width,
        ffn_width=int(width * 8 / 3) // 8 * 8,
        num_blocks=blocks,
        site=site,
        tap=tap,
        seq_len=seq_len,
        batch_size=batch_size,
        peak_lr=peak_lr,
    )
    check_folder(out)
    keeps(f"finished arms and the last checkpoint are in {out}; the same command goes on from there")
    train_corpus, held_out_corpus = reading.open(training), reading.open(held_out)
    with progress() as report:
        results = run_experiment(
            Bank.open(bank),
            train_corpus,
            held_out_corpus,
            out,
            tokenizer=reading.tokenizer,
            eos_id=train_corpus.eos_id,
            recipe=recipe,
            arms=arms.split(","),
            seeds=numbers,
            minutes=minutes,
            steps=steps,
            progress=report,
        )
    if json:
        emit(results, json=True)
        return
    facts = {"steps per arm": results["plan"]["steps"], "tokens per arm": results["tokens_per_arm"]}
    for comparison in results["comparisons"]:
        interval = comparison["interval"]
        facts[f"{comparison['first']} minus {comparison['second']}"] = (
            f"{comparison['difference']['overall']:+.4f} nats ({interval['low']:+.4f} to {interval['high']:+.4f}, "
            f"95 % over {comparison['over']})"
        )
    for result in results["arms"]:
        held = result["held_out"]
        facts[f"{result['label']}, seed {result['seed']}"] = f"{held['overall']:.4f}"
    emit(facts, json=False, title="held-out loss, nats per token")
