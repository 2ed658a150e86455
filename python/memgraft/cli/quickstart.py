"""``memgraft quickstart``: from text to a grafted model and a report."""

from pathlib import Path
from typing import Annotated

import typer

from memgraft.cli.common import JsonOption, ThreadsOption, emit, keeps, log, need, progress, verb
from memgraft.cli.sizes import parse_range
from memgraft.config import MAX_VOCAB_SIZE


@verb
def run(
    corpus: Annotated[
        Path | None, typer.Option("--corpus", help="A folder of text (.txt, .md, .jsonl); default: fetched and cached.")
    ] = None,
    donor: Annotated[
        str | None, typer.Option("--donor", help="A transformers folder, .gguf file or hub id; default: SmolLM2-135M.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where everything goes.")] = Path("quickstart"),
    minutes: Annotated[float, typer.Option(min=0.01, help="Training budget of the four arms together.")] = 8.0,
    seeds: Annotated[str, typer.Option(help="Seeds, by commas; they share the budget.")] = "0",
    vocab_size: Annotated[int, typer.Option(min=258, max=MAX_VOCAB_SIZE, help="Of the recipient's tokenizer.")] = 8192,
    budget: Annotated[int, typer.Option(min=1, help="Keys to mine, over orders 2 to 4.")] = 90_000,
    tap: Annotated[int | None, typer.Option(min=0, help="Donor depth; default: four fifths of its blocks.")] = None,
    threads: ThreadsOption = None,
    json: JsonOption = False,
) -> None:
    """Mine, harvest, graft, train four arms, generate and report, on the default text and donor or on yours.

    What is done is kept in OUT: a second run goes on where the first one stopped, and a phase is done again only when
    its inputs changed.
    """
    for module, extra in (("torch", "torch"), ("transformers", "transformers"), ("matplotlib", "report")):
        need(module, extra)
    from memgraft.quickstart import Options
    from memgraft.quickstart import run as quickstart
    from memgraft.report.verdict import verdict

    numbers = tuple(parse_range("--seeds", seeds))
    keeps(f"finished phases are in {out}; the same command goes on from there", out)
    options = Options(
        corpus=corpus,
        donor=donor,
        out=out,
        minutes=minutes,
        seeds=numbers,
        vocab_size=vocab_size,
        budget=budget,
        tap=tap,
    )
    with progress() as report:
        facts = quickstart(options, progress=report, log=log)
    if json:
        emit(facts, json=True)
        return
    held_out = facts["coverage"]["held-out text"]
    shown: dict[str, object] = {
        "report": str(out / "report.html"),
        "bank": f"{facts['bank']['num_rows']:,} rows in {out / 'bank'}",
        "fallback share, held-out text": f"{held_out['misses'] / held_out['positions']:.1%}",
    }
    for comparison in facts["experiment"]["comparisons"]:
        if comparison["first"] == "graft":
            shown[f"graft minus {comparison['second']}"] = f"{comparison['difference']['overall']:+.4f} nats, held out"
    shown["verdict"] = " ".join(verdict(facts["experiment"]).sentences)
    for result in facts["experiment"]["arms"]:
        shown[f"held-out loss: {result['label']}, seed {result['seed']}"] = f"{result['held_out']['overall']:.4f}"
    if facts["sample"]:
        shown["sample"] = facts["sample"]["prompt"] + facts["sample"]["text"][:300].replace("\n", " ")
    emit(shown, json=False, title="quickstart")
