"""GGUF donors: converted once into a transformers folder, with the tokenizer that the file describes."""

import contextlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from memgraft.assets.cache import cache_directory, directory_beside, sha256_file
from memgraft.errors import DonorError
from memgraft.harvesting.gguf_tokenizer import NOTE_NAME, RULE, restore_tokenizer
from memgraft.progress import Progress as Progress

PHASE = "open donor"


def convert_gguf(path: Path, progress: Progress | None = None) -> Path:
    """Converts a GGUF file, once, into a transformers folder in the cache; loading that takes seconds, not twenty.

    Weights are dequantised to float32, so that nothing is rounded twice.

    Raises:
        DonorError: transformers cannot read the file.
    """
    folder = cache_directory() / "converted" / sha256_file(path)[:32]
    if not (folder / "config.json").is_file():
        _convert(path, folder, progress)
    if _note(folder).get("rule") != RULE:
        restore_tokenizer(path, folder)
    for lost in tokenizer_losses(folder):
        warnings.warn(f"donor {path.name}: {lost}", stacklevel=2)
    return folder


def tokenizer_losses(folder: Path) -> list[str]:
    """What the tokenizer of a converted folder may read otherwise than the donor was trained; empty where nothing."""
    return list(_note(folder).get("lost", ()))


def _note(folder: Path) -> dict[str, Any]:
    try:
        noted: dict[str, Any] = json.loads((folder / NOTE_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return noted


_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of the scalar types of a GGUF's facts, by the number that names them; 8 is a text, 9 a list."""


_FEW = 1000


def gguf_blocks(path: Path) -> int | None:
    """The number of blocks, from the head of a GGUF file (version 2 or 3); None where it stands behind long lists.

    The file says it before its vocabulary, so that a few hundred bytes are read.
    """
    with open(path, "rb") as file:

        def number(size: int) -> int:
            return int.from_bytes(file.read(size), "little")

        if file.read(4) != b"GGUF" or number(4) not in (2, 3):
            return None
        file.seek(8, 1)
        for _ in range(min(number(8), 256)):
            name = file.read(min(number(8), 1 << 16))
            kind = number(4)
            if name.endswith(b".block_count") and kind in (4, 5):
                return number(4)
            if kind == 8:
                file.seek(number(8), 1)
            elif kind in _SCALARS:
                file.seek(_SCALARS[kind], 1)
            elif kind == 9 and (inner := number(4)) in _SCALARS:
                file.seek(number(8) * _SCALARS[inner], 1)
            elif kind == 9 and inner == 8 and (entries := number(8)) <= _FEW:  # tags; a vocabulary is longer
                for _ in range(entries):
                    file.seek(number(8), 1)
            else:
                return None
    return None


def _convert(path: Path, folder: Path, progress: Progress | None) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    location = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    try:
        with quiet_transformers(progress):
            model = AutoModelForCausalLM.from_pretrained(**location, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(**location)
    except Exception as error:  # the GGUF reader raises whatever the damage leads it to
        raise DonorError(
            f"donor {path}: transformers cannot read this GGUF file: {type(error).__name__}: {error}"
        ) from error
    # transformers refuses to save what was quantised; after the dequantisation this is a plain model.
    model.hf_quantizer, model.is_quantized, model.quantization_method = None, False, None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    with directory_beside(folder) as building, quiet_transformers():
        model.save_pretrained(building)
        tokenizer.save_pretrained(building)
        restore_tokenizer(path, building)


@contextlib.contextmanager
def quiet_transformers(progress: Progress | None = None) -> Iterator[None]:
    """Switches off transformers' own progress bars, which would break ours; ``progress`` hears of a GGUF's tensors."""
    from transformers import modeling_gguf_pytorch_utils as reading
    from transformers.utils import logging

    def counted(tensors: Any, **_: Any) -> Iterator[Any]:
        for done, tensor in enumerate(tensors):
            if progress is not None:
                progress(PHASE, done, len(tensors) + 1)
            yield tensor

    was_enabled, bar = logging.is_progress_bar_enabled(), getattr(reading, "tqdm", None)
    logging.disable_progress_bar()
    reading.tqdm = counted
    try:
        yield
    finally:
        if bar is not None:
            reading.tqdm = bar
        if was_enabled:
            logging.enable_progress_bar()
