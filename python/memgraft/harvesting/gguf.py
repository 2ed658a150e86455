"""GGUF donors: converted once into a transformers folder, with the cut of text that the file names.

transformers rebuilds a GGUF's tokenizer from its vocabulary and merges and takes GPT-2's cut, whatever
``tokenizer.ggml.pre`` says; digits, apostrophes and runs of spaces may then get other ids than the donor was trained
on.
"""

import contextlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from memgraft.assets.cache import cache_directory, directory_beside, sha256_file, write_beside
from memgraft.errors import DonorError
from memgraft.progress import Progress as Progress

NOTE_NAME = "memgraft-tokenizer.json"
"""What the conversion found out about the tokenizer."""
STAGE = "open donor"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _TAIL
_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _TAIL
_DIGITS = "digits"

# The names of llama.cpp (`tokenizer.ggml.pre`) and the regular expressions that it cuts by.
CUTS = {
    **dict.fromkeys(("gpt-2", "gpt2", "mpt", "olmo", "jais", "trillion", "granite-docling"), _GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), _DIGITS),
    **dict.fromkeys(("qwen2", "stablelm2", "deepseek-r1-qwen", "megrez", "hunyuan"), _QWEN2),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "smaug-bpe", "dbrx"), _LLAMA3),
}
_PROBES = ("year 2024 and 12345678", "it's I'LL don't WE'VE", "a  b    c        d", "x\n\n  y \n z")


def convert_gguf(path: Path, progress: Progress | None = None) -> Path:
    """Convert a GGUF file, once, into a transformers folder in the cache; loading that takes seconds, not twenty.

    Weights are dequantised to float32, so that nothing is rounded twice.

    Raises:
        DonorError: transformers cannot read the file.
    """
    folder = cache_directory() / "converted" / sha256_file(path)[:32]
    if not (folder / "config.json").is_file():
        _convert(path, folder, progress)
    if not (folder / NOTE_NAME).is_file():
        _restore_tokenizer(path, folder)
    for lost in tokenizer_losses(folder):
        warnings.warn(f"donor {path.name}: {lost}", stacklevel=2)
    return folder


def tokenizer_losses(folder: Path) -> list[str]:
    """What the tokenizer of a converted folder may read otherwise than the donor was trained; empty where nothing."""
    try:
        lost: list[str] = json.loads((folder / NOTE_NAME).read_text(encoding="utf-8"))["lost"]
    except FileNotFoundError:
        return []
    return lost


#: Bytes of the scalar types of a GGUF's facts, by the number that names them; 8 is a text, 9 a list.
_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


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
        _restore_tokenizer(path, building)


def _restore_tokenizer(path: Path, folder: Path) -> None:
    """Give the folder's ``tokenizer.json`` the cut that the GGUF names, and note what could not be restored."""
    import gguf

    reader = gguf.GGUFReader(path)
    kind, cut = (_string(reader, f"tokenizer.ggml.{name}") for name in ("model", "pre"))
    file = folder / "tokenizer.json"
    facts = json.loads(file.read_text(encoding="utf-8"))
    lost = []
    if kind == "gpt2":
        if cut in CUTS:
            facts["pre_tokenizer"] = pre_tokenizer(CUTS[cut])
            if CUTS[cut] == _LLAMA3:
                facts["model"]["ignore_merges"] = True
            if CUTS[cut] == _QWEN2:
                facts["normalizer"] = {"type": "NFC"}
            write_beside(file, json.dumps(facts, ensure_ascii=False).encode())
        elif changed := _differing(facts):
            lost.append(
                f"its file names the cut {cut!r}, which is not known here; the ids of {changed} depend on it and may "
                "be other ones than the donor was trained on; a transformers folder with the model's own "
                "tokenizer.json reads them right"
            )
    write_beside(folder / NOTE_NAME, json.dumps({"model": kind, "pre": cut, "lost": lost}, indent=1).encode())


def pre_tokenizer(cut: str) -> dict[str, Any]:
    """The serialised pre-tokenizer of a regular expression of `CUTS`, before a byte level."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": cut in (_GPT2, _DIGITS)}
    if cut == _GPT2:
        return level
    first: dict[str, Any] = {"type": "Digits", "individual_digits": True}
    if cut != _DIGITS:
        first = {"type": "Split", "pattern": {"Regex": cut}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [first, level]}


def _differing(facts: dict[str, Any]) -> list[str]:
    """The probes whose ids depend on which of the known cuts is taken."""
    from tokenizers import Tokenizer

    read = []
    for cut in (_GPT2, _DIGITS, _QWEN2, _LLAMA3):
        tokenizer = Tokenizer.from_str(json.dumps({**facts, "pre_tokenizer": pre_tokenizer(cut)}))
        read.append([tokenizer.encode(text, add_special_tokens=False).ids for text in _PROBES])
    return [text for place, text in enumerate(_PROBES) if any(ids[place] != read[0][place] for ids in read)]


def _string(reader: Any, name: str) -> str | None:
    field = reader.fields.get(name)
    return None if field is None else str(field.contents())


@contextlib.contextmanager
def quiet_transformers(progress: Progress | None = None) -> Iterator[None]:
    """Switch off transformers' own progress bars, which would break ours; ``progress`` hears of a GGUF's tensors."""
    from transformers import modeling_gguf_pytorch_utils as reading
    from transformers.utils import logging

    def counted(tensors: Any, **_: Any) -> Iterator[Any]:
        for done, tensor in enumerate(tensors):
            if progress is not None:
                progress(STAGE, done, len(tensors) + 1)
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
