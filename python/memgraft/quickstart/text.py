"""Documents for the quickstart: what is held out, and a tokenizer for the recipient from the rest."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from memgraft.assets.cache import sha256_file
from memgraft.corpus.documents import read_documents, text_files
from memgraft.corpus.text import unread as unread
from memgraft.errors import CorpusError
from memgraft.progress import Progress
from memgraft.system import write_beside

EOS = "<|endoftext|>"


def document_groups(folder: Path) -> Iterator[list[str]]:
    """The documents of a folder of text by kind: each ``.jsonl`` is a group, other files are grouped by their folder.

    Raises:
        CorpusError: no text, or text that is not UTF-8.
    """
    plain: dict[Path, list[Path]] = {}
    found = False
    for path in text_files(folder):
        found = True
        if path.suffix.lower() == ".jsonl" or not folder.is_dir():
            yield list(read_documents(path))
        else:
            plain.setdefault(path.parent, []).append(path)
    if not found:
        raise CorpusError(f"{folder}: expected text files (.txt, .md, .jsonl), found none; name a folder of text")
    for parent in sorted(plain):
        yield [document for path in plain[parent] for document in read_documents(path)]


def source_fingerprint(folder: Path) -> str:
    """SHA-256 over ``<sha256>  <path>`` lines of the text files of a corpus."""
    lines = [f"{sha256_file(path)}  {os.path.relpath(path, folder)}\n" for path in text_files(folder)]
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def hold_out(groups: Iterable[list[str]], share: float) -> tuple[list[str], list[str]]:
    """Training and held-out documents: of every group the given share, chosen by the documents' hashes.

    The choice depends on content alone, so equal documents fall on the same side, wherever they stand. Empty and
    repeated documents are left out.

    Raises:
        CorpusError: fewer than two documents.
    """
    documents: dict[str, str] = {}
    chosen: set[str] = set()
    for group in groups:
        digests = {hashlib.sha256(text.encode()).hexdigest(): text for text in group if text.strip()}
        fresh = sorted(digest for digest in digests if digest not in documents)
        documents |= {digest: text for digest, text in digests.items() if digest not in documents}
        chosen.update(fresh[: max(1, round(share * len(fresh))) if len(fresh) > 1 else 0])
    if not chosen:  # groups of one document each: hold out of all of them together
        chosen = set(sorted(documents)[: max(1, round(share * len(documents)))])
    if len(documents) < 2:
        raise CorpusError(
            f"the corpus has {len(documents)} distinct documents; expected at least two, so that some can be held out: "
            "cut the text into several files, or write a .jsonl with one document a line"
        )
    training = [text for digest, text in documents.items() if digest not in chosen]
    return training, [documents[digest] for digest in documents if digest in chosen]


def write_documents(path: Path, documents: Iterable[str]) -> None:
    """Writes documents as JSON lines, one a line."""
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents)
    write_beside(path, lines.encode())


def train_tokenizer(text: Path, path: Path, *, vocab_size: int, progress: Progress | None = None) -> int:
    """Trains a byte-level BPE tokenizer on documents and writes ``tokenizer.json``; returns its vocabulary size.

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
    return [json.loads(line) for line in path.read_bytes().splitlines()]
