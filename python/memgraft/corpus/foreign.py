"""Whose files these are: other tools' formats by name and first bytes, and splits by name.

A file of another tool often passes for bare tokens, and a validation file beside the training file passes for one
more shard. Both are refused by name, because nobody sees the mistake later.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from memgraft.errors import CorpusError, StorageError

_HEAD = 512
_CONVERT = "write its tokens with memgraft.CorpusWriter, or to Parquet"
_UNPACK = "unpack it first"


@dataclass(frozen=True)
class Foreign:
    """One format that is not read.

    Attributes:
        name: what it is, as a message says it.
        way_out: what to do about it.
        suffixes: names that end like this are of it.
        magic: whether a file's first bytes are of it.
        named: a whole name that is of it.
    """

    name: str
    way_out: str
    suffixes: tuple[str, ...] = ()
    magic: Callable[[bytes], bool] | None = None
    named: re.Pattern[str] | None = None


def _starts(*magics: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(magics)


def _is_pickle(head: bytes) -> bool:
    # Protocols 2 and 3 go on with an opcode that makes an object, 4 and 5 with a frame.
    if len(head) < 11 or head[0] != 0x80:
        return False
    framed = head[1] in (4, 5) and head[2] == 0x95 and head[7:11] == b"\0" * 4
    return framed or (head[1] in (2, 3) and head[2:3] in b"c]}(X")


def _is_safetensors(head: bytes) -> bool:
    return len(head) > 10 and head[8:10] in (b'{"', b"{ ") and int.from_bytes(head[:8], "little") < 1 << 27


def _is_tfrecord(head: bytes) -> bool:
    """A length of 8 bytes and its masked CRC32C."""
    if len(head) < 12:
        return False
    crc = 0xFFFFFFFF
    for byte in head[:8]:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    masked: int = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    return int.from_bytes(head[8:12], "little") == masked


def _is_arrow_stream(head: bytes) -> bool:
    """A continuation mark, the length of a schema, and the offset of its flatbuffer's root."""
    length, root = int.from_bytes(head[4:8], "little"), int.from_bytes(head[8:12], "little")
    return len(head) >= 64 and head[:4] == b"\xff" * 4 and 0 < root < length < 1 << 24 and length % 8 == 0


def _is_text(head: bytes) -> bool:
    """At least 64 bytes, and all of them what a text has: tokens would all have to be of two letters."""
    return len(head) >= 64 and all(32 <= byte < 127 or byte in (9, 10, 13) for byte in head)


FOREIGN: Sequence[Foreign] = (
    Foreign("gzip", _UNPACK, (".gz", ".tgz"), lambda head: head.startswith(b"\x1f\x8b\x08") and head[3] < 32),
    Foreign("Zstandard", _UNPACK, (".zst", ".zstd"), _starts(b"\x28\xb5\x2f\xfd")),
    Foreign("xz", _UNPACK, (".xz",), _starts(b"\xfd7zXZ\0")),
    Foreign("bzip2", _UNPACK, (".bz2",), lambda head: head[:3] == b"BZh" and head[4:10] == b"1AY&SY"),
    Foreign("LZ4", _UNPACK, (".lz4",), _starts(b"\x04\x22\x4d\x18")),
    Foreign("Snappy", _UNPACK, (".snappy",), _starts(b"\xff\x06\0\0sNaPpY")),
    Foreign("a NumPy archive", "save one array with numpy.save", (".npz",)),
    Foreign("a PyTorch file", "save its tokens with numpy.save(path, tensor.numpy())", (".pt", ".pth")),
    Foreign("a zip archive (npz, torch.save)", "save one array with numpy.save", (".zip",), _starts(b"PK\x03\x04")),
    Foreign("a pickle", "save its tokens with numpy.save", (".pkl", ".pickle"), _is_pickle),
    Foreign("safetensors", "save its tokens with numpy.save", (".safetensors",), _is_safetensors),
    Foreign("GGUF", "it holds a model, no tokens", (".gguf",), _starts(b"GGUF")),
    Foreign("HDF5", "save its tokens with numpy.save", (".h5", ".hdf5"), _starts(b"\x89HDF\r\n\x1a\n")),
    Foreign("TFRecord", _CONVERT, (".tfrecord", ".tfrecords"), _is_tfrecord),
    Foreign("a tar archive (WebDataset)", _CONVERT, (".tar",), lambda head: head[257:262] == b"ustar"),
    Foreign("MosaicML's MDS", _CONVERT, (".mds",)),
    Foreign("a chunk of Lit-GPT's packed dataset", _CONVERT, (), _starts(b"LITPKDS")),
    Foreign("a chunk of litdata", _CONVERT, (), named=re.compile(r"chunk-\d+-\d+\.bin")),
    Foreign(
        "an index that Megatron keeps of its samples",
        "name the .bin that it is of",
        (),
        named=re.compile(r".*(document|doc|sample|shuffle|dataset|dataset_sample)_(index|idx)\.npy"),
    ),
    Foreign("ORC", _CONVERT, (".orc",), lambda head: head.startswith(b"ORC") and head[3:4] < b"\x20"),
    Foreign("MXNet's RecordIO", _CONVERT, (".rec",), _starts(b"\x0a\x23\xd7\xce")),
    Foreign("LMDB", _CONVERT, (".mdb", ".lmdb")),
    Foreign("ArrayRecord", _CONVERT, (".array_record", ".arrayrecord")),
    Foreign("Bagz", _CONVERT, (".bagz", ".bag")),
    Foreign("FFCV", _CONVERT, (".beton",)),
    Foreign("MessagePack", _CONVERT, (".msgpack",)),
    Foreign("a table in text", "write its tokens to Parquet", (".csv", ".tsv")),
    Foreign("SQLite", _CONVERT, (".sqlite", ".db"), _starts(b"SQLite format 3\0")),
    Foreign("Parquet", "name it .parquet", (), _starts(b"PAR1")),
    Foreign("Arrow", "name it .arrow", (".feather", ".ipc", ".arrows"), _starts(b"ARROW1")),
    Foreign("a stream of Arrow", "name it .arrow", (), _is_arrow_stream),
    Foreign("Lance", _CONVERT, (".lance",)),
    Foreign("Avro", _CONVERT, (".avro",), _starts(b"Obj\x01")),
    Foreign("text", "tokenise it: memgraft tokenize", (), _is_text),
)
"""Every format that is known and not read."""

_FOLDERS: Mapping[str, str] = {
    **dict.fromkeys((".zarray", ".zgroup", "zarr.json"), "a Zarr store"),
    **dict.fromkeys(("shard_ledger.json", "cache_ledger.json"), "Levanter's token cache"),
    "data.mdb": "an LMDB database",
}
"""Names that mark a folder as another tool's."""
_OWN: Mapping[str, str] = {
    "bank.json": "a bank; several banks that are one memory are given as one, by commas: bank/,more/",
    "graft.json": "a graft; name the corpus that it is to read",
}
"""Names that mark a folder of ours which holds no corpus."""
_INDEXES: Mapping[str, str] = {"chunks": "litdata's chunks", "shards": "MosaicML's MDS shards"}
"""Keys of an ``index.json``, and whose it is."""

_SPLITS: Mapping[str, str] = {
    **dict.fromkeys(("train", "training", "trn", "trains"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "vals", "vld", "unseen"), "validation"),
    **dict.fromkeys(("dev", "devel", "development", "eval", "evals", "evaluation"), "validation"),
    **dict.fromkeys(("heldout", "holdout"), "validation"),
    **dict.fromkeys(("test", "testing", "tst", "tests"), "test"),
}
_HUB_NAME = re.compile(r"(.+?)-\d+-of-\d+(?:-[0-9a-f]+)?")
"""``train-00000-of-00008``: the hub's way of naming the shards of a split, whatever the split is called."""
_PACKING = re.compile(r"\.jsonl?(\.(gz|zst|xz|bz2))?$", re.IGNORECASE)
"""Ends of the names of lines of JSON, packed or not."""
_SHARD = re.compile(r"(.+?)[-._]?\d+-of-\d+.*")
"""The same for a text of any kind: the base before ``-00000-of-00002``."""
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_GLUED = re.compile(
    r"(train|training|val|valid|validation|dev|test|testing|eval|evaluation)(data|dataset|set|split|tokens|ds|corpus|text)"
)


def split_of(name: str) -> str | None:
    """The split that a file's name says it is of: ``train``, ``validation``, ``test``, the hub's own word, or None."""
    stem = Path(name).stem
    if hub := _HUB_NAME.fullmatch(stem):
        return _SPLITS.get(hub[1].lower(), hub[1])
    for word in _WORDS.findall(stem.replace("held_out", "heldout").replace("held-out", "heldout")):
        lower = word.lower()
        if glued := _GLUED.fullmatch(lower):
            lower = glued[1]
        if lower in _SPLITS:
            return _SPLITS[lower]
    return None


def refuse_splits(folder: Path, files: Iterable[Path]) -> None:
    """Refuses the files of a folder that its names call different splits.

    Raises:
        CorpusError: there are several splits, or files of a validation or test split among others.
    """
    by_split: dict[str | None, list[str]] = {}
    for file in files:
        by_split.setdefault(split_of(file.name), []).append(file.name)
    named = sorted(split for split in by_split if split is not None)
    if len(named) < 2 and not (named and None in by_split and named[0] != "train"):
        return
    found = [f"{split} ({_few(by_split[split])})" for split in named]
    if None in by_split:
        found.append(f"others ({_few(by_split[None])})")
    example = folder / min(by_split.get("train") or by_split.get(None) or by_split[named[0]])
    raise CorpusError(
        f"{folder}: expected the files of one split, found {', '.join(found)}; name the files of the one you mean, "
        f"such as {example}, or move the others out"
    )


def _few(names: list[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


def refuse_text_splits(root: Path, files: Iterable[Path]) -> None:
    """Refuses text files, or folders of them, side by side of which some are to train on and others to measure by.

    Words like ``test`` alone name many things in folders of text, so both must be there, alone in their names, or in
    names of lines of JSON or of numbered shards that are the same but for that word; pages (``.md``) are never splits.

    Args:
        root: the folder that was named.
        files: the text files below it.

    Raises:
        CorpusError: both are.
    """
    found: dict[tuple[Path, str], dict[str, str]] = {}
    for file in files:
        if file.suffix.lower() == ".md":
            continue
        if (word := _split_in(file.name)) is not None:
            rest, named = word
            found.setdefault((file.parent, rest), {}).setdefault(named, file.name)
        for place in (file, *file.parents):
            if place == root:
                break
            split = _SPLITS.get(re.sub(r"[\W\d_]+", "", place.stem.lower()))
            if split is not None:
                found.setdefault((place.parent, ""), {}).setdefault(split, place.name)
    for (folder, _), splits in found.items():
        if "train" in splits and len(splits) > 1:
            raise CorpusError(
                f"{folder}: expected the text of one split, found {', '.join(sorted(splits.values()))}; name the one "
                f"you mean: {folder / splits['train']}"
            )


def _split_in(name: str) -> tuple[str, str] | None:
    """What the name of a data file is without the one word that names a split, and the split; None for other names."""
    stem = _PACKING.sub("", name)
    shard = _SHARD.fullmatch(stem)
    if shard is None and stem == name:
        return None
    words = [word.lower() for word in _WORDS.findall(shard[1] if shard is not None else stem)]
    places = [place for place, word in enumerate(words) if word in _SPLITS]
    if len(places) != 1:
        return None
    (place,) = places
    return "-".join([*words[:place], "*", *words[place + 1 :]]).removeprefix("*").removesuffix("*"), _SPLITS[
        words[place]
    ]


def refuse_foreign(path: Path, *, token_files: Sequence[Path] = (), typed: bool = False) -> None:
    """Refuses a file of another tool, or a folder of them.

    Args:
        path: a file or folder.
        token_files: the files of the folder that pass for tokens by their names.
        typed: the caller says what type the tokens are, so that letters are no sign of text.

    Raises:
        CorpusError: it is one, with its name and the way out.
        StorageError: it cannot be read.
    """
    if path.is_dir():
        _refuse_folder(path)
        refuse_index(path)
        for file in token_files:
            _refuse_head(file, typed)
        for file in [] if token_files else listed(path):
            if (kind := _by_suffix(file)) is not None:
                raise CorpusError(f"{path}: expected token files, found {kind.name} ({file.name}); {kind.way_out}")
    elif path.is_file():
        refuse_index(path.parent, path.name)
        if (kind := _by_suffix(path)) is not None:
            raise CorpusError(f"{path}: expected a token file, found {kind.name}; {kind.way_out}")
        _refuse_head(path, typed)


def _by_suffix(path: Path) -> Foreign | None:
    name = path.name.lower()
    for kind in FOREIGN:
        if (kind.suffixes and name.endswith(kind.suffixes)) or (kind.named and kind.named.fullmatch(name)):
            return kind
    return None


def _refuse_folder(folder: Path) -> None:
    for mark, tool in _FOLDERS.items():
        if (folder / mark).is_file():
            raise CorpusError(f"{folder}: expected token files, found {tool} ({mark}); {_CONVERT}")


def _refuse_head(path: Path, typed: bool) -> None:
    # Bytes beside an index of their own are tokens whatever they look like.
    if path.with_suffix(".idx").is_file() or path.with_name(path.name + ".index").is_file():
        return
    if (named := _by_suffix(path)) is not None:
        raise CorpusError(f"{path}: expected a token file, found {named.name}; {named.way_out}")
    head = _head(path)
    for kind in FOREIGN:
        if kind.magic is not None and kind.magic(head) and not (typed and kind.magic is _is_text):
            raise CorpusError(f"{path}: expected a token file, found {kind.name}; {kind.way_out}")


def refuse_own(folder: Path) -> None:
    """Refuses a folder of memgraft's that holds no corpus.

    Raises:
        CorpusError: it is one, with its name.
    """
    for mark, kind in _OWN.items():
        if (folder / mark).is_file():
            raise CorpusError(f"{folder}: expected token files or text, found {kind}")


def refuse_below(folder: Path, suffixes: tuple[str, ...]) -> None:
    """Refuses a folder that holds nothing itself and tokens or tables in the folders below it.

    Args:
        folder: one without files of such names, and without text but pages (``.md``).
        suffixes: names of tokens and tables.

    Raises:
        CorpusError: there are such folders, at most two levels down.
    """
    inside = sorted(place for place in (*folder.glob("*/"), *folder.glob("*/*/")) if place.is_dir())
    visible = [place for place in inside if not any(p.startswith(".") for p in place.relative_to(folder).parts)]
    holding = [place for place in visible if any(file.suffix in suffixes for file in listed(place, suffixes))]
    if holding:
        names = ", ".join(str(place.relative_to(folder)) for place in holding[:3]) + (" …" if holding[3:] else "")
        raise CorpusError(
            f"{folder}: expected files in the folder itself, found them in {names}, which may be splits; name the one "
            f"you mean, such as {holding[0]}"
        )


def refuse_index(folder: Path, name: str | None = None) -> None:
    """Refuses files that an ``index.json`` beside them describes as another tool's.

    Args:
        folder: where it would lie.
        name: one file of the folder; all of them where it is None.

    Raises:
        CorpusError: there is such a description, and it lists the file.
    """
    try:
        found = json.loads((folder / "index.json").read_bytes())
    except (OSError, ValueError):
        return
    if not isinstance(found, dict):
        return
    for key, tool in _INDEXES.items():
        entries = found.get(key)
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            continue
        if name is None or name == "index.json" or f'"{name}"' in json.dumps(entries):
            raise CorpusError(
                f"{folder if name is None else folder / name}: expected token files, found {tool}, as the index.json "
                f"beside them says; {_CONVERT}"
            )


def token_files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files of ``folder`` that pass for tokens by their names, hidden ones left out.

    Raises:
        CorpusError: one of them is a link to nothing.
        StorageError: it cannot be listed.
    """
    return [file for file in listed(folder, suffixes) if file.suffix in suffixes]


def listed(folder: Path, suffixes: tuple[str, ...] = ()) -> list[Path]:
    """The files of ``folder``, hidden ones left out.

    Raises:
        CorpusError: a link of a name that ends in one of ``suffixes`` leads to nothing.
        StorageError: it cannot be listed.
    """
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
        lost = next((e for e in entries if e.suffix in suffixes and e.is_symlink() and not e.exists()), None)
        if lost is not None:
            raise CorpusError(f"{lost}: expected a file, found a link to nothing; mend the link, or remove it")
        return [entry for entry in entries if entry.is_file()]
    except OSError as error:
        raise StorageError(
            f"{folder}: {error.strerror or error}: cannot list the folder; check its permissions"
        ) from error


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD)
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}: cannot read the file; check its permissions") from error
