"""Opening what a verb is pointed at, and the options of corpora that several verbs share."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memgraft.cli import common
from memgraft.errors import ArgumentError, StorageError

if TYPE_CHECKING:
    from memgraft import Bank, Corpus, KeySet, NgramIndex

Artifact = "Bank | KeySet | NgramIndex"

CorpusPaths = Annotated[
    list[Path], typer.Argument(help="Token files, a folder of shards, or a folder of text (with --tokenizer).")
]
CorpusPath = Annotated[Path, typer.Argument(help="Token file, folder of shards, or folder of text (with --tokenizer).")]
FormatOption = Annotated[
    str | None, typer.Option("--format", help="nanogpt, llmc, megatron, datatrove, numpy or raw; default: detected.")
]
DtypeOption = Annotated[str | None, typer.Option("--dtype", help="Stored type of tokens where the file does not say.")]
EosOption = Annotated[int | None, typer.Option("--eos-id", min=0, help="Token that delimits documents.")]
OneDocumentOption = Annotated[
    bool, typer.Option("--file-is-document", help="Take each file as one document, where nothing else tells.")
]
TokenizerOption = Annotated[
    Path | None, typer.Option("--tokenizer", help="tokenizer.json that made, or is to make, the tokens.")
]


def open_corpus(
    paths: list[Path],
    format: str | None,
    dtype: str | None,
    eos_id: int | None,
    file_is_document: bool,
    tokenizer: Path | None,
) -> "Corpus":
    """Opens a corpus from the shared options."""
    from memgraft import Corpus

    with common.progress("bytes") as report:  # of text that is tokenised; token files open at once
        return Corpus.open(
            paths[0] if len(paths) == 1 else paths,
            format=format,
            dtype=dtype,
            eos_id=eos_id,
            tokenizer=tokenizer,
            documents="file" if file_is_document else None,
            progress=report,
        )


def kind_of(path: Path) -> str:
    """``"bank"``, ``"keys"``, ``"index"`` or ``"corpus"``, from the name and what is there.

    Raises:
        StorageError: nothing is there.
    """
    if path.suffix == ".mgk":
        return "keys"
    if path.suffix == ".mgi":
        return "index"
    # Any of a bank's files makes a folder a bank, so that one without its bank.json is reported as such.
    if path.name == "bank.json" or any((path / name).exists() for name in ("bank.json", "keys.mgk", "index.mgi")):
        return "bank"
    if path.with_name(path.name + ".partial").is_dir():
        return "bank"
    if not path.exists() and not path.with_name(path.name + ".idx").exists():
        raise StorageError(f"{path}: not found: expected a bank directory, keys.mgk, index.mgi or a token corpus")
    return "corpus"


def open_index(path: Path) -> "tuple[NgramIndex, Bank | None, KeySet | None]":
    """The index at ``path``, with its bank or its key set where they are at hand.

    A key set is indexed on the spot; an ``index.mgi`` finds the ``.mgk`` of its key set in the same folder.

    Raises:
        ArgumentError: ``path`` is none of these.
    """
    from memgraft import Bank, KeySet, NgramIndex

    match kind_of(path):
        case "bank":
            bank = Bank.open(path.parent if path.name == "bank.json" else path)
            return bank.index, bank, bank.keys
        case "keys":
            keys = KeySet.open(path)
            return NgramIndex.build(keys), None, keys
        case "index":
            index = NgramIndex.open(path)
            for beside in sorted(path.parent.glob("*.mgk")):
                keys = KeySet.open(beside)
                if keys.fingerprint == index.keyset_fingerprint:
                    return index, None, keys
            return index, None, None
        case _:
            raise ArgumentError(f"{path}: expected a bank, an index.mgi or a keys.mgk, found something else")


def check_output(path: Path) -> Path:
    """Returns ``path`` if a file can be written there, so that long work does not end in a refusal.

    Raises:
        StorageError: the folder is missing or cannot be written, or ``path`` is a folder.
    """
    import os

    if path.is_dir():
        raise StorageError(f"{path}: expected a file name to write to, found a folder; add a name")
    if not path.parent.is_dir():
        raise StorageError(f"{path}: expected to write into the folder {path.parent}, found no such folder; make it")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise StorageError(f"{path}: expected to write into {path.parent}, found it not writable; choose another --out")
    return path


def parse_ids(name: str, text: str | None) -> list[int]:
    """Token ids from ``"1,2,3"``.

    Raises:
        ArgumentError: not a list of numbers.
    """
    try:
        return [int(part) for part in text.split(",")] if text else []
    except ValueError:
        raise ArgumentError(f"{name}: expected numbers with commas between, got {text!r}") from None


def decode(tokenizer: Any, key: "tuple[int, ...] | list[int]") -> str:
    """The text of a key, special tokens included."""
    return str(tokenizer.decode(list(key), skip_special_tokens=False))
