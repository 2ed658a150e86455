"""``memgraft split``: a corpus into training and held-out documents."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memgraft.cli import artifacts, common

if TYPE_CHECKING:
    from memgraft import Corpus

#: Tokens copied at a time.
BLOCK = 1 << 22


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
    vocab_size: Annotated[int | None, typer.Option(help="Number of ids; default: the corpus's.")] = None,
    overwrite: common.OverwriteOption = False,
    json: common.JsonOption = False,
) -> None:
    """Write the two parts of a corpus that 'mine --held-out' with the same seed tells apart, as two corpora."""
    targets = {part: out.with_name(f"{out.name}-{part}") for part in ("train", "held-out")}
    for target in targets.values():
        artifacts.check_output(target.with_name(target.name + ".bin"), overwrite=overwrite)
    opened = reading.open(corpus)
    parts = dict(zip(targets, opened.split(held_out=held_out, seed=seed), strict=True))
    facts: dict[str, object] = {}
    with common.progress("tokens") as report:
        for name, part in parts.items():
            written = write_corpus(part, targets[name], vocab_size, partial(report, f"write {name}"))
            facts[name.replace("-", "_")] = {
                "path": str(written),
                "num_documents": part.num_documents,
                "num_tokens": part.num_tokens,
                "fingerprint": part.fingerprint,
            }
    facts |= {"share": held_out, "seed": seed, "of": opened.fingerprint}
    common.emit(facts, json=json, title=f"Split {opened.paths[0]}")


def write_corpus(
    corpus: "Corpus", path: Path, vocab_size: int | None, progress: "common.Counted | None" = None
) -> Path:
    """Writes the documents of ``corpus`` to ``path`` (.bin, .idx, .json) and returns the token file."""
    import numpy as np

    from memgraft import CorpusWriter

    size = vocab_size or corpus.vocab_size
    if size is None:
        size = 1 + max(
            int(corpus.tokens(start, min(start + BLOCK, corpus.num_tokens)).max(initial=0))
            for start in range(0, corpus.num_tokens, BLOCK)
        )
    starts = np.asarray(corpus.document_starts, dtype=np.int64)
    with CorpusWriter(
        path, vocab_size=size, eos_id=corpus.eos_id, tokenizer=corpus.tokenizer, special_ids=corpus.special_ids
    ) as writer:
        first = 0
        while first < corpus.num_documents:
            # As many whole documents as fit a block, and one at least.
            last = max(first + 1, int(np.searchsorted(starts, starts[first] + BLOCK, side="right")) - 1)
            writer.add_many(corpus.tokens(int(starts[first]), int(starts[last])), np.diff(starts[first : last + 1]))
            first = last
            if progress is not None:
                progress(int(starts[last]), int(starts[-1]))
        return writer.finish()
