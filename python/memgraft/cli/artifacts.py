"""Opening what a verb is pointed at, and the options of corpora that several verbs share."""

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec, get_type_hints

import typer

from memgraft.cli import common
from memgraft.errors import ArgumentError, FingerprintError, StorageError
from memgraft.system import check_writable

if TYPE_CHECKING:
    from memgraft import Bank, Corpus, KeySet, NgramIndex
    from memgraft.mining import SpillPlan

CorpusPaths = Annotated[
    list[Path],
    typer.Argument(help="Token files, a folder of shards, Parquet or a saved dataset, or text (with --tokenizer)."),
]

P = ParamSpec("P")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a verb was told to read token corpora: one field for each of the shared options."""

    tokenizer: Annotated[
        Path | None,
        typer.Option("--tokenizer", help="tokenizer.json (or its folder) that made, or is to make, the tokens."),
    ] = None
    format: Annotated[
        str | None,
        typer.Option("--format", help="nanogpt, llmc, megatron, datatrove, numpy or raw; default: detected."),
    ] = None
    dtype: Annotated[str | None, typer.Option("--dtype", help="Stored type of tokens where the file does not say.")] = (
        None
    )
    eos_id: Annotated[int | None, typer.Option("--eos-id", min=0, help="Token that delimits documents.")] = None
    file_is_document: Annotated[
        bool, typer.Option("--file-is-document", help="Take each file as one document, where nothing else tells.")
    ] = False
    column: Annotated[
        str, typer.Option("--column", help="Column of token ids in Parquet files and saved datasets.")
    ] = "input_ids"
    temporary: Annotated[
        Path | None,
        typer.Option(
            "--temporary",
            help="Folder for temporary data; default: beside what is written, else (and for tokens of text and tables) "
            "the system's.",
        ),
    ] = None

    def open(self, paths: "Path | list[Path]", *, made: "Bank | KeySet | None" = None, again: bool = False) -> "Corpus":
        """Opens a corpus; a bar shows text being tokenised and tables being read, token files open at once.

        A line names the files of a folder of text that are left out because of their names.

        Args:
            paths: one corpus.
            made: whose tokens those of a text are to be: a bank's own tokenizer stands in for ``--tokenizer``.
            again: of a folder that was opened before, whose files need no line.

        Raises:
            FingerprintError: ``--tokenizer`` is not the one that made the keys; said before a text is tokenised.
        """
        from memgraft import Corpus
        from memgraft.corpus import is_text
        from memgraft.corpus.documents import unread

        tokenizer = self.tokenizer
        texts = [path for path in (paths if isinstance(paths, list) else [paths]) if is_text(path)]
        if made is not None and texts:
            tokenizer = tokenizer_of(made, tokenizer)
        for path in texts:
            if tokenizer is not None and not again and path.is_dir() and (told := unread(path)):
                common.log(told)
        with common.progress("bytes") as report:
            return Corpus.open(
                paths[0] if isinstance(paths, list) and len(paths) == 1 else paths,
                format=self.format,
                dtype=self.dtype,
                eos_id=self.eos_id,
                tokenizer=tokenizer,
                documents="file" if self.file_is_document else None,
                column=self.column,
                temporary=self.temporary,
                progress=report,
            )


def tokenizer_of(made: "Bank | KeySet", given: Path | None) -> Path | None:
    """The tokenizer for text that is read with ``made``: the one ``given``, else a bank's own.

    Raises:
        FingerprintError: ``given`` is not the one that made the keys.
    """
    from memgraft import Bank
    from memgraft.tokenizer import differs_from, facts_of_keys, open_tokenizer

    if given is None:
        return made.tokenizer_path if isinstance(made, Bank) else None
    if isinstance(made, Bank):
        recorded = facts_of_keys(made.keys.metadata, made.manifest.tokenizer)
    else:
        recorded = facts_of_keys(made.metadata)
    if difference := differs_from(open_tokenizer(given), recorded):
        raise FingerprintError(
            f"--tokenizer {given}: not the one that made the keys of {made.path}: {difference}; give that one"
        )
    return given


def reads_corpora(function: Callable[Concatenate[Reading, P], None]) -> Callable[P, None]:
    """Gives a verb the options of :class:`Reading`, after its own; it receives them as its first argument.

    An option of a name that the verb has itself stays the verb's.
    """
    _, *own = inspect.signature(function).parameters.values()
    names = {parameter.name for parameter in own}
    options = {field.name: field for field in fields(Reading) if field.name not in names}

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        chosen: dict[str, Any] = {name: kwargs.pop(name) for name in options if name in kwargs}
        function(Reading(**chosen), *args, **kwargs)

    hints = get_type_hints(Reading, include_extras=True)
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[name])
        for name, field in options.items()
    ]
    own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
    # The flags that every verb has stay last in its help.
    last = [parameter for parameter in own if parameter.name in ("threads", "dry_run", "json")]
    parameters = [*(parameter for parameter in own if parameter not in last), *shared, *last]
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapper


WORTH_SAYING = 10**8
"""Bytes to be written that are announced; fewer only where they are a tenth of what is free, since the line would be
noise for every small corpus."""

_KINDS = {".mgk": "keys", ".mgi": "index", ".mgr": "part"}
_HEADS = {(b"MEMGRAFT", 1): "keys", (b"MEMGRAFT", 2): "index"}
"""By the first bytes and the number of the kind (docs/FORMAT.md)."""


def _kind_by_head(path: Path) -> str | None:
    """What a file that has another ending says that it is; None of anything else."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        head = file.read(24)
    if head[:8] == b"MEMGRUNS":
        return "part"
    return _HEADS.get((head[:8], int.from_bytes(head[20:24], "little")))


def kind_of(path: Path) -> str:
    """What is at ``path``, from name and content.

    One of ``"bank"``, ``"keys"``, ``"index"``, ``"part"`` (a run file), ``"graft"``, ``"annotation"``,
    ``"experiment"``, ``"corpus"``.

    Raises:
        StorageError: nothing is there, or what an interrupted command left.
    """
    if "," in str(path) and not path.exists():
        # Several banks, one on top of the other.
        return "bank"
    if kind := _KINDS.get(path.suffix) or _kind_by_head(path):
        return kind
    if path.suffix == ".partial" and path.is_dir():
        raise StorageError(
            f"{path}: is not finished: run the command that began it again, which goes on from there and writes "
            f"{path.with_suffix('')}"
        )
    # Any of a bank's files makes a folder a bank, so that one without its bank.json is reported as such.
    if path.name == "bank.json" or any((path / name).exists() for name in ("bank.json", "keys.mgk", "index.mgi")):
        return "bank"
    if any((folder / "graft.json").is_file() for folder in (path, path / "graft")):
        return "graft"
    if (path / "annotation.json").is_file():
        return "annotation"
    if (path / "plan.json").is_file() and not (path / "stages.json").exists():
        return "experiment"
    if (path / "report.json").is_file():
        raise StorageError(
            f"{path}: holds a report, which is for reading: open report.html or report.md in it; a bank, a corpus or "
            "an experiment inside is named by its own path"
        )
    if path.with_name(path.name + ".partial").is_dir():
        return "bank"
    if not path.exists() and not path.with_name(path.name + ".idx").exists():
        raise StorageError(
            f"{path}: not found: expected a bank directory, keys.mgk, index.mgi, a token corpus, a graft, an "
            "annotation, an experiment or a run file"
        )
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


def made_bank(path: Path, bank: "Bank") -> dict[str, Any]:
    """What a verb that made a bank of others says of it."""
    return {
        "bank": path,
        "num_rows": bank.num_rows,
        "num_keys_by_order": bank.keys.num_keys_by_order,
        "value_bytes": bank.num_rows * bank.bytes_per_row,
        "sources": [source["bank"] for source in bank.manifest.corpus.get("sources", ())],
        "fingerprint": bank.fingerprint,
    }


def combine_keys(
    combine: "Callable[[list[KeySet]], KeySet]", keys: list[Path], out: Path, *, overwrite: bool, json: bool
) -> None:
    """Writes what ``combine`` makes of the key sets at ``keys``, and says what it is."""
    from memgraft import KeySet

    check_output(out, overwrite=overwrite)
    made = combine([KeySet.open(path) for path in keys])
    made.save(out)
    say_sample(out, made)
    facts = {"keys": out, "num_keys": len(made), "num_keys_by_order": made.num_keys_by_order}
    common.emit({**facts, "fingerprint": made.fingerprint}, json=json, title=f"Made {out}")


def say_sample(out: Path, keys: "KeySet") -> None:
    """Says where ``keys``, saved at ``out``, have no sample of the mined text; one of other keys is removed."""
    from memgraft.corpus.sample import sample_path
    from memgraft.corpus.writer import storage_errors

    if keys.sample is None:
        path = sample_path(out)
        with storage_errors(path, "cannot remove the sample of other keys; remove it"):
            path.unlink(missing_ok=True)
        common.log(
            f"{out}: no sample of the mined text, since not all of the sources have one; coverage needs --mined-from"
        )


def worth_saying(plan: "SpillPlan") -> bool:
    """Whether so much is going to be written that someone may want to know of it."""
    return plan.bytes >= WORTH_SAYING or (plan.free is not None and plan.bytes > plan.free / 10)


def say_room(plan: "SpillPlan", more: str = "") -> None:
    """Announces what is going to be written, in one line, where it is much, or much of what is free.

    Args:
        plan: what is written, and where.
        more: what else is known of its rate.
    """
    if not worth_saying(plan):
        return
    rate = f" ({plan.bytes_per_token:.1f} bytes a token{more})" if plan.bytes_per_token else ""
    free = "how much is free there is not known" if plan.free is None else f"{_size(plan.free)} are free there"
    common.log(f"about {_size(plan.bytes)} will be written to {plan.folder} for {plan.what}{rate}; {free}")


def _size(num_bytes: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if num_bytes >= size:
            return f"{num_bytes / size:,.1f} {unit}"
    return f"{num_bytes} bytes"


def split_of_keys(keys: "KeySet", corpus: "Corpus", option: str, way: str) -> "tuple[Corpus, Corpus]":
    """Training and held-out part of ``corpus`` as they were when ``keys`` were mined from the former.

    Raises:
        ArgumentError: the keys were not mined from a split of this corpus, which ``option`` asks for; ``way`` is the
            way out.
    """
    from memgraft.mining import origin

    if (parts := origin.split_of_keys(keys, corpus)) is None:
        raise ArgumentError(
            f"{option}: expected keys that were mined with --held-out from {corpus.paths[0]}, found others; give {way}"
        )
    return parts


def check_output(path: Path, *, overwrite: bool = False, endings: tuple[str, ...] = (), option: str = "--out") -> Path:
    """Returns ``path`` if a file can be written there, so that long work does not end in a refusal.

    Args:
        path: the file to be.
        overwrite: whether one that is there may go.
        endings: what a name of its format ends with, where another one would mislead its readers; none is fine.
        option: the option that names the file, for the message.

    Raises:
        ArgumentError: a file is there and ``overwrite`` is not set, or the name is one of another format.
        StorageError: the folder is missing or cannot be written, or ``path`` is a folder.
    """
    if endings and path.suffix and path.suffix.lower() not in endings:
        raise ArgumentError(f"{path}: expected a name that ends with {' or '.join(endings)}, since that is written")
    if path.is_dir():
        raise StorageError(f"{path}: expected a file name to write to, found a folder; add a name")
    if not path.parent.is_dir():
        raise StorageError(f"{path}: expected to write into the folder {path.parent}, found no such folder; make it")
    check_writable(path.parent)
    if path.exists() and not overwrite:
        raise ArgumentError(
            f"{path}: is there already and is not written over; choose another {option}, or --overwrite"
        )
    return path


def check_folder(path: Path) -> Path:
    """Returns ``path`` if a folder of that name is there or can be made and be written into.

    Raises:
        StorageError: it cannot.
    """
    nearest = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    if not nearest.is_dir():
        raise StorageError(f"{path}: expected a folder or a new name, found the file {nearest}; choose another --out")
    check_writable(nearest)
    return path


def parse_ids(name: str, text: str | None) -> list[int]:
    """Token ids from ``"1,2,3"``.

    Raises:
        ArgumentError: not a list of numbers.
    """
    from memgraft.cli.sizes import parse_range

    return parse_range(name, text) if text else []


def speller(tokenizer: Any) -> Callable[[Sequence[int]], str]:
    """What gives the text of a key as inside a document, special tokens included."""
    from memgraft.keyed import decoder

    texts = decoder(tokenizer)
    return lambda key: texts([key])[0]
