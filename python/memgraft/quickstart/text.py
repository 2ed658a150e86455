"""Documents for the quickstart: what is held out, and a tokenizer for the recipient from the rest."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from memgraft.assets.cache import write_beside
from memgraft.corpus.text import read_documents
from memgraft.errors import CorpusError

EOS = "<|endoftext|>"
Progress = Callable[[str, int, int], None]


def document_groups(folder: Path) -> Iterator[list[str]]:
    """The documents of a folder of text by kind: each ``.jsonl`` is a group, other files are grouped by their folder.

    Raises:
        CorpusError: no text, or text that is not UTF-8.
    """
    if not folder.is_dir():
        yield list(read_documents(folder))
        return
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".txt", ".md", ".jsonl") and path.is_file())
    visible = [path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if not visible:
        raise CorpusError(f"{folder}: expected text files (.txt, .md, .jsonl), found none; name a folder of text")
    for path in visible:
        if path.suffix == ".jsonl":
            yield list(read_documents(path))
    for parent in sorted({path.parent for path in visible}):
        plain = [path for path in visible if path.parent == parent and path.suffix != ".jsonl"]
        if plain:
            yield [document for path in plain for document in read_documents(path)]


def hold_out(groups: Iterable[list[str]], share: float) -> tuple[list[str], list[str]]:
    """Training and held-out documents: of every group the given share, chosen by the documents' hashes.

    The choice depends on content alone, so equal documents fall on the same side, wherever they stand. Empty and
    repeated documents are left out.

    Raises:
        CorpusError: fewer than two documents.
    """
    training: list[str] = []
    held_out: list[str] = []
    seen: set[str] = set()
    for group in groups:
        documents = {hashlib.sha256(text.encode()).hexdigest(): text for text in group if text.strip()}
        fresh = [digest for digest in documents if digest not in seen]
        seen.update(fresh)
        count = max(1, round(share * len(fresh))) if len(fresh) > 1 else 0
        chosen = set(sorted(fresh)[:count])
        training += [documents[digest] for digest in fresh if digest not in chosen]
        held_out += [documents[digest] for digest in fresh if digest in chosen]
    if not training or not held_out:
        raise CorpusError(
            f"the corpus has {len(seen)} distinct documents; expected at least two in one folder or .jsonl, "
            "so that some can be held out"
        )
    return training, held_out


def write_documents(path: Path, documents: Iterable[str]) -> None:
    """Write documents as JSON lines, one a line."""
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents)
    write_beside(path, lines.encode())


def train_tokenizer(text: Path, path: Path, *, vocab_size: int, progress: Progress | None = None) -> int:
    """Train a byte-level BPE tokenizer on documents and write ``tokenizer.json``; return its vocabulary size.

    ``<|endoftext|>`` is id 0. The size may come out smaller than asked where the text is small.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    documents = list(read_documents(text))

    def watched() -> Iterator[str]:
        for number, document in enumerate(documents, start=1):
            yield document
            if progress is not None and (number % 256 == 0 or number == len(documents)):
                progress("train tokenizer", number, len(documents))

    tokenizer.train_from_iterator(watched(), trainer)
    write_beside(path, tokenizer.to_str().encode())
    size: int = tokenizer.get_vocab_size()
    return size


def first_words(text: str, count: int = 6) -> str:
    """The first words of a document, as a prompt."""
    return " ".join(text.split()[:count])


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a file that `write_documents` wrote."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
