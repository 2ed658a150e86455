"""A donor's folder: where a path, a GGUF file or a hub id has its weights, how these are quantised, their hash."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from memgraft.assets.cache import sha256_file
from memgraft.errors import DonorError
from memgraft.harvesting.gguf import convert_gguf
from memgraft.progress import Progress

_HUB_FILES = ("*.safetensors", "*.safetensors.index.json", "*.json", "tokenizer*", "*.model", "*.txt")
_HUB_COPIES = ("original/*", "consolidated*", "*/consolidated*", "onnx/*", "gguf/*")
"""The weights once more, in the form of those who trained them."""
_WEIGHTS = "*.safetensors"
_HUB_SECONDS = 30
"""The hub is given so long to say whether it has a donor."""


def donor_folder(source: str | Path, progress: Progress | None = None) -> Path:
    """The local transformers folder of a donor: itself, the converted GGUF in the cache, or the hub's snapshot.

    Raises:
        DonorError: there is none.
    """
    found = local_donor(source)
    if found is None:
        return _hub_snapshot(str(source))
    return convert_gguf(found, progress) if found.is_file() else found


def local_donor(source: str | Path) -> Path | None:
    """The transformers folder or GGUF file that a donor is on this machine; None where its name is the hub's.

    Raises:
        DonorError: no donor is there, nor can the hub have one of that name.
    """
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise DonorError(
                f"donor {path}: expected a folder, a .gguf file or a hub id, found a {path.suffix or 'plain'} file"
            )
        return path
    if path.is_dir():
        if not (path / "config.json").is_file():
            ggufs = sorted(path.glob("*.gguf"))
            if len(ggufs) == 1:
                return ggufs[0]
            raise DonorError(
                f"donor {path}: expected config.json and *.safetensors, or one .gguf file, "
                f"found {len(ggufs)} .gguf files and no config.json"
            )
        if not any(path.glob(_WEIGHTS)):
            raise DonorError(
                f"donor {path}: expected *.safetensors, found none; pickled weights are never loaded: "
                "convert them with transformers' save_pretrained"
            )
        return path
    name = str(source)
    if name.count("/") > 1 or name.startswith((".", "/", "~")) or name.endswith(".gguf"):
        raise DonorError(f"donor {name}: no such file or folder")
    return None


def refuse_hub_name(name: str) -> None:
    """Refuses a donor that is not on this machine where the hub has none of that name, or cannot be asked.

    Raises:
        DonorError: so it is.
    """
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    with _hub_errors(name):
        try:
            huggingface_hub.snapshot_download(name, local_files_only=True)
        except LocalEntryNotFoundError:
            if _offline():
                raise
            _ask_hub(name)


def _ask_hub(name: str) -> None:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    try:
        huggingface_hub.HfApi().model_info(name, timeout=_HUB_SECONDS)
    except (HfHubHTTPError, OSError):
        raise
    except Exception as error:  # of the library below the hub's, which is another by version
        raise OSError(str(error)) from error


def _hub_snapshot(name: str) -> Path:
    import huggingface_hub

    with _hub_errors(name):
        return Path(
            huggingface_hub.snapshot_download(name, allow_patterns=list(_HUB_FILES), ignore_patterns=list(_HUB_COPIES))
        )


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")


@contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    """What the hub's library raises, as errors about the donor."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        yield
    except HFValidationError as error:
        raise DonorError(f"donor {name}: neither a local path nor a hub id ({error})") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        state = (
            "HF_HUB_OFFLINE is set and the hub's cache does not hold it"
            if _offline()
            else f"the model hub cannot give it ({error})"
        )
        raise DonorError(
            f"donor {name}: no such file or folder, and {state}; pass the path of a transformers folder or a .gguf file"
        ) from error


def folder_fingerprint(folder: Path) -> str:
    """SHA-256 over ``<sha256>  <name>`` lines of the weights files, sorted by name."""
    lines = [f"{sha256_file(path)}  {path.name}\n" for path in sorted(folder.glob(_WEIGHTS))]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def quantisation(folder: Path) -> str | None:
    """How the weights in ``folder`` are quantised, as its ``config.json`` says; None where they are not."""
    try:
        facts = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("quantization_config")
    except (OSError, ValueError, AttributeError):
        return None  # what loading refuses
    return str(facts.get("quant_method", "unknown")) if isinstance(facts, dict) else None
