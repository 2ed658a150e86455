"""A tokenizer as a file: where ``tokenizer.json`` lies, and how it is loaded."""

import os
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
        others = [name for name in _OTHER_FORMS if (path.parent / name).is_file()]
        found = f"{' and '.join(others)} in place of it; {_converted(path.parent)}" if others else _NO_FILE
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
_OTHER_FORMS = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "merges.txt", "vocab.txt")


def _other_kind(path: Path) -> str | None:
    """What a tokenizer in another form is, so far as its name and first bytes tell; None for all else."""
    with path.open("rb") as file:
        start = file.read(4)
    if start == b"GGUF":
        return "a GGUF file"
    return "a SentencePiece model" if path.suffix == ".model" else None


def _converted(path: Path) -> str:
    """How transformers makes a tokenizer.json of another form."""
    folder, file = (path, "") if path.is_dir() else (path.parent, path.name)
    option = f", gguf_file={file!r}" if file and _other_kind(path) == "a GGUF file" else ""
    return (
        "transformers writes one where it knows the model: "
        f"AutoTokenizer.from_pretrained({os.fspath(folder)!r}{option}).save_pretrained('tokenizer/')"
    )
