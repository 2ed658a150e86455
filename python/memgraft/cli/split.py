"""``memgraft split``: a corpus into training and held-out documents."""

from pathlib import Path
from typing import Annotated

import typer

from memgraft.cli import artifacts, common


@common.verb
@artifacts.reads_corpora
def run(
    reading: artifacts.Reading,
    corpus: artifacts.CorpusPaths,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Prefix: <out>-train and <out>-held-out, each .bin, .idx, .json.")
    ],
    held_out: Annotated[float, typer.Option("--held-out", help="Share of documents to hold out.")] = 0.05,
    seed: Annotated[int, typer.Option(help="Seed of the choice.")] = 0,
    threads: common.ThreadsOption = None,
    overwrite: common.OverwriteOption = False,
    json: common.JsonOption = False,
) -> None:
    """Write the two parts of a corpus that 'mine --held-out' with the same seed tells apart, as two corpora."""
    from memgraft import Corpus
    from memgraft.corpus import write_split

    targets = {part: out.with_name(f"{out.name}-{part}") for part in ("train", "held-out")}
    for target in targets.values():
        artifacts.check_output(target.with_name(target.name + ".bin"), overwrite=overwrite)
    opened = reading.open(corpus)
    with common.progress("tokens") as report:
        written = write_split(opened, *targets.values(), held_out=held_out, seed=seed, progress=report)
    facts: dict[str, object] = {}
    for name, path in zip(targets, written, strict=True):
        part = Corpus.open(path)
        facts[name.replace("-", "_")] = {
            "path": str(path),
            "num_documents": part.num_documents,
            "num_tokens": part.num_tokens,
            "fingerprint": part.fingerprint,
        }
    facts |= {"share": held_out, "seed": seed, "of": opened.fingerprint}
    common.emit(facts, json=json, title=f"Split {opened.paths[0]}")
