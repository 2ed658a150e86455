"""``memgraft probe``: which donor, tap, prefix and contexts are worth a harvest."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memgraft.cli import common
from memgraft.cli.artifacts import Reading, check_output, reads_corpora
from memgraft.cli.harvest import donor_device, parse_contexts, parse_taps

if TYPE_CHECKING:
    from memgraft.probing import ProbeResult


@common.verb
@reads_corpora
def run(
    reading: Reading,
    keys: Annotated[Path, typer.Argument(help="The key set, keys.mgk.")],
    tokenizer: Annotated[Path, typer.Option("--tokenizer", help="The recipient's tokenizer.json, or its folder.")],
    corpus: Annotated[list[Path], typer.Option("--corpus", help="The corpus that the keys were mined from.")],
    donor: Annotated[list[str], typer.Option("--donor", help="A transformers folder, .gguf file or hub id; several.")],
    held_out: Annotated[
        Path | None, typer.Option("--held-out", help="Other documents; default: what 'mine --held-out' held out.")
    ] = None,
    taps: Annotated[
        str | None, typer.Option(help="Donor depths, e.g. 2,8,16; default: quarter, half, three quarters and all.")
    ] = None,
    prefix: Annotated[
        list[str] | None, typer.Option(help=r"auto, none, bos, or text (\n is a newline); several. Default: auto.")
    ] = None,
    contexts: Annotated[
        str | None, typer.Option(help="K:L, by commas, e.g. 1:0,2:12: occurrences and tokens of left context.")
    ] = None,
    value_dtypes: Annotated[str, typer.Option("--value-dtypes", help="Storage types, by commas.")] = "bf16",
    normalise: Annotated[str, typer.Option(help="What is done to values first: rms, none, by commas.")] = "rms",
    recipient: Annotated[
        Path | None, typer.Option(help="The recipient: what its own embeddings know is shown too.")
    ] = None,
    minutes: Annotated[
        float, typer.Option(min=0.01, help="Time for all of it; fewer keys are drawn to fit, down to 400.")
    ] = 10.0,
    num_keys: Annotated[
        int | None, typer.Option("--sample", min=8, help="Sampled keys, whatever --minutes; the same each time.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Fits of each candidate.")] = 3,
    seed: Annotated[int, typer.Option(help="Of the sample and the fits.")] = 0,
    compute_dtype: Annotated[str, typer.Option(help="The donor's run: auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; default: a card if there is one.")] = None,
    device_map: Annotated[
        str | None, typer.Option("--device-map", help="auto: spread the donor over all cards and the memory.")
    ] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Also draw the table into this .svg file.")] = None,
    threads: common.ThreadsOption = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write over the file of --plot; default: refuse.")
    ] = False,
    json: common.JsonOption = False,
) -> None:
    """Rank donors, taps, prefixes, contexts by what their values know of the next token, on a sample of the keys.

    Nothing is harvested. Beside the candidates stand next-token counts, embeddings and shuffled rows.
    """
    from memgraft.keyset import KeySet
    from memgraft.mining.origin import held_out_part

    common.need("torch", "torch")
    common.need("transformers", "transformers")
    from memgraft.harvesting.asked import recipient_codec
    from memgraft.probing.asked import check_probe

    if plot is not None:
        check_output(plot, overwrite=overwrite, endings=(".svg",), option="--plot")
        common.need("matplotlib", "report")
    keyset = KeySet.open(keys)
    opening = replace(reading, tokenizer=tokenizer)
    options: dict[str, Any] = {
        "recipient_tokenizer": tokenizer,
        "donors": donor,
        "taps": parse_taps(taps),
        "prefixes": [text.replace("\\n", "\n") for text in prefix or ["auto"]],
        "contexts": [parse_contexts(each, "K:L such as 1:0,2:12") for each in contexts.split(",")]
        if contexts
        else [None],
        "dtypes": [common.storage_type(each) for each in value_dtypes.split(",")],
        "normalisations": normalise.split(","),
        "recipient": recipient,
        "minutes": minutes,
        "num_keys": num_keys,
        "seeds": seeds,
        "seed": seed,
        "compute_dtype": compute_dtype,
        "device": donor_device(device, device_map),
    }
    check_probe(**options)
    recipient_codec(keyset, tokenizer)
    mined = opening.open(corpus, made=keyset)
    held = None if held_out is None else opening.open(held_out, made=keyset)
    held_out_part(keyset, mined, held)
    # Torch comes once nothing is left to refuse without it.
    from memgraft.probing import probe

    with common.progress("keys") as report:
        result = probe(keyset, corpus=mined, held_out=held, **options, progress=report, note=common.log)
    if plot is not None:
        from memgraft.report.plots import probe_plot

        plot.write_text(probe_plot(result.facts()))
    if json:
        common.emit(result.facts(), json=True)
        return
    print_result(result)


def print_result(result: "ProbeResult") -> None:
    """The table of a probe, the best first, baselines among the candidates."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column("what the next token is told by")
    for name in ("loss", "to the best, 95 %", "seeds", "keys/s", "bytes a row"):
        table.add_column(name, justify="right")
    for row in sorted((*result.candidates, *result.baselines), key=lambda one: one.loss):
        known = row.kind == "candidate"
        table.add_row(
            Text(row.name, style="" if known else "dim"),
            f"{row.loss:.4f}",
            "" if row.worse == 0 else f"{row.worse:+.4f} ({row.low:+.4f} to {row.high:+.4f})",
            f"{min(row.losses):.3f}-{max(row.losses):.3f}" if len(row.losses) > 1 else "",
            f"{row.keys_per_second:,.0f}" if row.keys_per_second is not None else "",
            f"{row.bytes_per_row:,}" if row.bytes_per_row is not None else "",
        )
    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(table)
    sample = result.sample
    common.log(
        f"{sample['num_keys']:,} keys, {sample['num_exam_hits']:,} held-out hits, {sample['seconds']:,.0f} s; "
        f"chosen: {result.chosen.name}"
    )
