"""datatrove: a pipeline step that mines the documents of its task into a part.

``pip install 'memgraft[datatrove]'``; the same step runs under the local, Slurm and Ray executors.
"""

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datatrove.data import DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from memgraft.corpus import Corpus, tokenize_folder
from memgraft.errors import ArgumentError, CorpusError
from memgraft.mining import RunSet, mine_part


class MineNgrams(PipelineStep):  # type: ignore[misc]
    """Leaves the n-grams of each task in ``<output>/part-<rank>.mgr``; ``memgraft keys merge`` makes keys of them.

    After a reader, the step tokenises the documents of its task. First in a pipeline, it reads the tokenised files that
    ``tokens`` names, each task a stretch of them. A task that is run again goes on where it was killed.

    Args:
        output: folder for the parts.
        tokenizer: ``tokenizer.json`` (or its folder): makes the tokens of documents, or has made those of ``tokens``.
        tokens: tokenised files (such as ``.ds``), or a folder of them, in place of documents.
        orders: lengths of keys.
        eos: text or id of the token that ends a document; for ``tokens`` its id.
        vocab_size: number of ids; default: the tokenizer's.
        memory: working memory of a task.
        threads: threads of a task.
    """

    name = "⛏ n-grams"
    type = "⛏ memgraft"

    def __init__(
        self,
        output: str | os.PathLike[str],
        tokenizer: str | os.PathLike[str] | None = None,
        tokens: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
        *,
        orders: Sequence[int] = (2, 3, 4),
        eos: str | int | None = None,
        vocab_size: int | None = None,
        memory: int | str = "4GiB",
        threads: int = 1,
    ) -> None:
        super().__init__()
        if tokenizer is None and tokens is None:
            raise ArgumentError("tokenizer: expected one for documents, or tokens= that are there, got neither")
        if tokens is not None and isinstance(eos, str):
            raise ArgumentError(f"eos: expected the id that delimits documents in tokens=, got {eos!r}")
        self.output = Path(output)
        self.tokenizer = tokenizer
        self.tokens = tokens
        self.eos = eos
        self.options: dict[str, Any] = {
            "orders": tuple(orders),
            "vocab_size": vocab_size,
            "memory": memory,
            "threads": threads,
        }

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Mines the task's documents; passes them on.

        Raises:
            MemgraftError: as :func:`memgraft.mining.mine_part`.
        """
        self.output.mkdir(parents=True, exist_ok=True)
        if self.tokens is not None:
            eos_id = None if self.eos is None else int(self.eos)
            corpus = Corpus.open(_listed(self.tokens), tokenizer=self.tokenizer, eos_id=eos_id)
            self._mine(corpus, rank, world_size, apart=False)
            if data is not None:
                yield from data
            return
        with tempfile.TemporaryDirectory(prefix=f".tokens-{rank:05d}-", dir=self.output) as folder:
            text = Path(folder) / "documents.jsonl"
            num_documents = 0
            with text.open("w", encoding="utf-8") as lines:
                for document in data or ():
                    lines.write(json.dumps({"text": document.text}) + "\n")
                    num_documents += bool(document.text)
                    yield document
            self._mine(self._tokenize(text, num_documents), rank, world_size, apart=True)

    def _tokenize(self, text: Path, num_documents: int) -> Corpus:
        out, vocab_size = text.with_name("tokens"), self.options["vocab_size"]
        assert self.tokenizer is not None
        sized: dict[str, Any] = {"eos": self.eos, "vocab_size": vocab_size}
        if num_documents:
            return Corpus.open(tokenize_folder(text, self.tokenizer, out, **sized))
        # A task without documents: some text is tokenised to learn the facts that all parts must agree in.
        text.write_text(json.dumps({"text": "-"}) + "\n")
        return Corpus.open(tokenize_folder(text, self.tokenizer, out, **sized)).without_documents()

    def _mine(self, corpus: Corpus, rank: int, world_size: int, *, apart: bool) -> RunSet:
        out = self.output / f"part-{rank:05d}.mgr"
        with self.track_time(unit="part"):
            part = mine_part(corpus, out, rank=rank, world=world_size, apart=apart, **self.options)
        shard = part.facts["shards"][0]
        self.stat_update("tokens", value=shard["num_tokens"], unit="part")
        self.stat_update("documents", value=shard["num_documents"], unit="part")
        self.stat_update("records", value=part.facts["num_records"], unit="part")
        return part


def _listed(tokens: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Path]:
    """The files of ``tokens``; of a folder its ``.ds`` in order of their names, or the folder itself."""
    if not isinstance(tokens, (str, os.PathLike)):
        return [Path(path) for path in tokens]
    folder = Path(tokens)
    if not folder.exists():
        raise CorpusError(f"{folder}: expected tokenised files, found nothing there")
    return sorted(folder.glob("*.ds")) or [folder] if folder.is_dir() else [folder]
