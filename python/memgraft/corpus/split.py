"""A corpus written as two: documents to train on and documents to measure by, chosen as mining chooses them."""

import os
from pathlib import Path

from memgraft.config import MAX_VOCAB_SIZE
from memgraft.corpus.blocks import documents_in_blocks
from memgraft.corpus.reader import Corpus
from memgraft.corpus.writer import CorpusWriter
from memgraft.progress import Progress, callback

_COPIED_TOKENS = 1 << 22
"""Tokens copied at a time."""


def write_split(
    corpus: Corpus,
    train: str | os.PathLike[str],
    held: str | os.PathLike[str],
    *,
    held_out: float,
    seed: int = 0,
    progress: Progress | bool | None = None,
) -> tuple[Path, Path]:
    """Writes the two parts of :meth:`Corpus.split` as corpora of their own and returns their ``.bin`` files.

    Their :attr:`Corpus.split_facts` and fingerprints are those of the parts, so that keys mined from the one are known
    to be of the training part, and ``held_out`` of ``mine`` with the same seed holds out the same documents.

    Args:
        corpus: what to split.
        train: prefix of the training part.
        held: prefix of the held-out part.
        held_out: the share of documents that is held out.
        seed: of the choice.
        progress: True for bars, or called with (phase, tokens done, tokens in all).

    Raises:
        ArgumentError: ``held_out`` is not between 0 and 1.
        CorpusError: fewer than two documents, or a part without tokens.
        StorageError: a file cannot be written.
    """
    progress = callback(progress)
    parts = corpus.split(held_out=held_out, seed=seed)
    done = 0
    written = []
    for part, out in zip(parts, (train, held), strict=True):
        with CorpusWriter(
            out,
            vocab_size=part.vocab_size or MAX_VOCAB_SIZE,
            eos_id=part.eos_id,
            tokenizer=part.tokenizer,
            tokenizer_mapping=part.tokenizer_mapping,
            special_ids=part.special_ids,
            split=part.split_facts,
            declared=part.vocab_size is not None,
        ) as writer:
            for edges in documents_in_blocks(part, _COPIED_TOKENS):
                writer.add_many(part.tokens(int(edges[0]), int(edges[-1])), edges[1:] - edges[:-1])
                done += int(edges[-1] - edges[0])
                if progress is not None:
                    progress("split", done, corpus.num_tokens)
            written.append(writer.finish())
    return written[0], written[1]
