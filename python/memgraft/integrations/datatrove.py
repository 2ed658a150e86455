"""datatrove: a pipeline step that mines the documents of its task into a part.

``pip install 'memgraft[datatrove]'``; the same step runs under the local, Slurm and Ray executors.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datatrove.data import DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from memgraft.bank.locks import open_lock, try_lock
from memgraft.corpus import Corpus, tokenize_folder
from memgraft.corpus.writer import storage_errors
from memgraft.errors import ArgumentError, CorpusError, StorageError
from memgraft.mining import RunSet, mine_part


class MineNgrams(PipelineStep):  # type: ignore[misc]
    """Leaves the n-grams of each task in ``<output>/part-<rank>.mgr``; ``memgraft keys merge`` makes keys of them.

    After a reader, the step tokenises the documents of its task. First in a pipeline, it reads the tokenised files that
    ``tokens`` names, each task a stretch of them. A task that is run again goes on where it was killed, and removes
    what was left of its text and tokens. A second run of a task that is at work is refused.

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
            StorageError: a second run of the task is at work, or the text cannot be written.
        """
        self.output.mkdir(parents=True, exist_ok=True)
        if self.tokens is not None:
            eos_id = None if self.eos is None else int(self.eos)
            corpus = Corpus.open(_listed(self.tokens), tokenizer=self.tokenizer, eos_id=eos_id)
            self._mine(corpus, rank, world_size, apart=False)
            if data is not None:
                yield from data
            return
        with _own_folder(self.output / f".tokens-{rank:05d}") as folder:
            text = folder / "documents.jsonl"
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


@contextlib.contextmanager
def _own_folder(folder: Path) -> Iterator[Path]:
    """An empty folder for this run of a task alone, removed at the end.

    It has one name a task, so that the next run finds what a killed one has left.

    Raises:
        StorageError: another run is at work there, or nothing can be written there.
    """
    with storage_errors(folder, "cannot be made; choose another output="):
        folder.mkdir(exist_ok=True)
    lock = folder / "lock"
    held = open_lock(lock)
    try:
        # The kernel ends the lock of a killed process. Without one a second run would empty the folder of the first,
        # which would mine whatever the second has written by then.
        if not try_lock(held, lock):
            raise StorageError(f"{folder}: another run of this task is at work there; wait for it, or stop it")
    except BaseException:
        os.close(held)
        raise
    try:
        with storage_errors(folder, "what a killed run has left there cannot be removed; remove the folder"):
            for path in sorted(folder.iterdir()):
                if path.is_dir():
                    shutil.rmtree(path)
                elif path != lock:
                    path.unlink()
        yield folder
    finally:
        # Closed first, because NFS keeps a file in its folder as long as it is open. Best effort: what stays, the next
        # run removes, and an error of the task is the one to report.
        os.close(held)
        shutil.rmtree(folder, ignore_errors=True)


def _listed(tokens: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Path]:
    """The files of ``tokens``; of a folder its ``.ds`` in order of their names, or the folder itself."""
    if not isinstance(tokens, (str, os.PathLike)):
        return [Path(path) for path in tokens]
    folder = Path(tokens)
    if not folder.exists():
        raise CorpusError(f"{folder}: expected tokenised files, found nothing there")
    return sorted(folder.glob("*.ds")) or [folder] if folder.is_dir() else [folder]
