"""A tokenizer as a file: where ``tokenizer.json`` lies, and how it is loaded."""

import os
import re
from pathlib import Path
from typing import Any

from memgraft.errors import ArgumentError, ConfigError, FormatError

TOKENIZER_NAME = "tokenizer.json"


def tokenizer_path(path: str | os.PathLike[str]) -> Path:
    """The ``tokenizer.json`` that ``path`` names: itself, or the one in a folder.

    Raises:
        ArgumentError: no path.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise ArgumentError(
            f"tokenizer: expected the path of a tokenizer.json or of its folder, got a {type(path).__name__}; "
            "save_pretrained(folder) writes that of an open transformers tokenizer"
        )
    return Path(path) / TOKENIZER_NAME if Path(path).is_dir() else Path(path)


def load_tokenizer_file(path: str | os.PathLike[str]) -> Any:
    """Loads a ``tokenizer.json``, or a folder's, with the ``tokenizers`` library, as it is.

    Raises:
        ConfigError: the library is missing.
        ArgumentError: no such file.
        FormatError: the file is not a tokenizer.
    """
    path = tokenizer_path(path)
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError:
        raise ConfigError(
            "reading a tokenizer.json needs the tokenizers library: pip install 'memgraft[cli]'"
        ) from None
    if not path.is_file():
        others = _other_forms(path.parent)
        found = " and ".join(other.name for other in others)
        found = f"{found} in place of it; {_way_from(others)}" if others else _NO_FILE
        raise ArgumentError(f"tokenizer {path}: expected a tokenizer.json, found {found}")
    if (kind := _other_kind(path)) is not None:
        raise FormatError(
            f"tokenizer {path}: expected a tokenizer.json of the tokenizers library, found {kind}; {_converted(path)}"
        )
    try:
        return Tokenizer.from_file(os.fspath(path))
    except Exception as error:  # the library raises bare Exception
        raise FormatError(
            f"tokenizer {path}: expected a tokenizer.json of the tokenizers library, found: {error}"
        ) from error


_NO_FILE = "no such file; name one, or the folder that holds it"
_KNOWN_NAMES = (  # to transformers, whatever the model
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tekken.json"),
    *("vocab.json", "merges.txt", "vocab.txt"),
)
_OTHER_NAMES = re.compile(r".*\.model(\..+)?|.*\.tiktoken|.*tekken.*\.json")
_TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+=* [0-9]+\r?\n")
_GGUF, _TIKTOKEN, _TEKKEN, _SENTENCEPIECE = "a GGUF file", "a tiktoken file", "a tekken file", "a SentencePiece model"


def _other_forms(folder: Path) -> list[Path]:
    """The files of a folder that are named as tokenizers in other forms are."""
    if not folder.is_dir():
        return []
    named = [path for path in folder.iterdir() if path.name in _KNOWN_NAMES or _OTHER_NAMES.fullmatch(path.name)]
    return sorted(path for path in named if path.is_file())


def _other_kind(path: Path) -> str | None:
    """What a tokenizer in another form is, so far as its name and first bytes tell; None for all else."""
    with path.open("rb") as file:
        start = file.read(400)
    if start.startswith(b"GGUF"):
        return _GGUF
    if _TIKTOKEN_LINE.match(start):
        return _TIKTOKEN
    if "tekken" in path.name and path.suffix == ".json":
        return _TEKKEN
    return _SENTENCEPIECE if path.suffix == ".model" or ".model." in path.name else None


def _way_from(others: list[Path]) -> str:
    """How one of a folder's files becomes a tokenizer.json; which one, only the caller knows if they are of many."""
    if len(others) > 1 and any(other.name not in _KNOWN_NAMES for other in others):
        return "name one of them, and the way from it to a tokenizer.json is told"
    return _converted(min(others, key=lambda other: _other_kind(other) is None))


def _converted(path: Path) -> str:
    """How transformers makes a tokenizer.json of another form.

    It knows SentencePiece models and tekken files by one name, in a folder of their own, and reads them with
    libraries that it does not bring along.
    """
    kind = _other_kind(path)
    if kind == _TIKTOKEN:
        return (
            "transformers and tiktoken make one, given the pattern that splits its text, which stands in the code that "
            "it comes with: transformers.convert_slow_tokenizer."
            f"TikTokenConverter({os.fspath(path)!r}, pattern=..., extra_special_tokens=['<|endoftext|>'])"
            ".converted().save('tokenizer.json')"
        )
    named = path.name
    if named not in _KNOWN_NAMES:
        named = {_TEKKEN: "tekken.json", _SENTENCEPIECE: "tokenizer.model"}.get(kind or "", named)
    needs = {_TEKKEN: "mistral-common", _SENTENCEPIECE: "sentencepiece protobuf"}.get(kind or "")
    option = f", gguf_file={path.name!r}" if kind == _GGUF else ""
    return (
        "transformers writes one where it knows the model: "
        + ("" if path.name == named else f"copied to a folder of its own as {named}, ")
        + (f"after pip install {needs}, " if needs else "")
        + f"AutoTokenizer.from_pretrained({os.fspath(path.parent) if path.name == named else 'folder'!r}{option})"
        ".save_pretrained('tokenizer/')"
    )
