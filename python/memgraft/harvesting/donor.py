"""A donor, loaded with its tokenizer from a transformers folder, a GGUF file or a hub id."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memgraft.errors import ArgumentError, DonorError, FormatError
from memgraft.harvesting.causal import refuse_two_way
from memgraft.harvesting.devices import best_device, check_compute_dtype, native_compute_dtype
from memgraft.harvesting.folder import donor_folder, folder_fingerprint, quantisation
from memgraft.harvesting.gguf import PHASE, convert_gguf, quiet_transformers, tokenizer_losses
from memgraft.progress import Progress, callback
from memgraft.tokenizer import TextCodec, open_tokenizer

__all__ = [
    "Donor",
    "best_device",
    "convert_gguf",
    "donor_folder",
    "folder_fingerprint",
    "native_compute_dtype",
    "open_donor",
    "quiet_transformers",
]


@dataclass(frozen=True, kw_only=True)
class Donor:
    """A loaded donor in evaluation mode."""

    name: str
    """The name it was asked for by: a path's last part or a hub id."""
    model: Any
    """The ``transformers`` causal language model."""
    tokenizer: TextCodec
    bos: int | None
    """The donor tokenizer's BOS id, if it has one."""
    num_blocks: int
    value_dim: int
    vocab_size: int
    fingerprint: str
    """SHA-256 over the names and hashes of its weights files."""
    architecture: str
    compute_dtype: str
    """The type its blocks run in."""
    tokenizer_losses: tuple[str, ...] = ()
    """What its tokenizer, rebuilt from a GGUF file, may read otherwise than the donor was trained."""
    quantised: str | None = None
    """How its weights are quantised (``"fp8"``, ``"bitsandbytes"`` …), where transformers reads them so."""

    def facts(self) -> dict[str, Any]:
        """What ``bank.json`` says about the donor."""
        return {
            "name": self.name,
            "architecture": self.architecture,
            "fingerprint": self.fingerprint,
            "tokenizer_fingerprint": self.tokenizer.fingerprint,
            "num_blocks": self.num_blocks,
            "value_dim": self.value_dim,
            "compute_dtype": self.compute_dtype,
            **({"tokenizer_losses": list(self.tokenizer_losses)} if self.tokenizer_losses else {}),
            **({"quantised": self.quantised} if self.quantised else {}),
        }


def open_donor(
    source: str | Path | Donor,
    *,
    compute_dtype: str = "auto",
    device: str | None = None,
    progress: Progress | bool | None = None,
) -> Donor:
    """Loads a donor and its tokenizer from a folder, a ``.gguf`` file or a hub id (``HF_HUB_OFFLINE`` is respected).

    ``compute_dtype`` is the type its blocks run in: ``"float32"``, ``"bfloat16"``, ``"float16"``, or ``"auto"``:
    bfloat16 where the device multiplies it natively, else float32. ``device`` is the best there is by default
    (`best_device`); ``"auto"`` spreads the blocks over all cards and the memory (accelerate). Weights that are
    quantised are read where transformers can; so are mixtures of experts. Text is read as the folder's
    ``tokenizer.json`` says, which transformers may rebuild otherwise. ``progress`` is called as
    ``progress("open donor", done, total)``.

    Raises:
        ArgumentError: an unknown ``compute_dtype``, no such device, or a donor that is neither named nor a `Donor`.
        DonorError: nothing there, weights missing or pickled, no tokenizer, or not a causal language model (an encoder,
            a model that reads both ways).
    """
    progress = callback(progress)
    if isinstance(source, Donor):
        return source
    if not isinstance(source, (str, os.PathLike)):
        raise ArgumentError(
            f"donor: expected a path, a hub id or what open_donor() gave, got a {type(source).__name__}; save a model "
            "and its tokenizer into one folder (save_pretrained) and give that"
        )
    check_compute_dtype(compute_dtype)
    import torch
    from transformers import AutoModelForCausalLM

    device = best_device(device)
    dtype = native_compute_dtype(device) if compute_dtype == "auto" else compute_dtype
    if progress is not None:
        progress(PHASE, 0, 1)
    folder = donor_folder(source, progress)
    quantised = quantisation(folder)
    device_map = "auto" if device == "auto" else {"": device} if quantised and device != "cpu" else None
    try:
        with quiet_transformers():
            # A folder's own code is never run, nor is the person at the terminal asked whether it may.
            model, loading = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=getattr(torch, dtype),
                use_safetensors=True,
                output_loading_info=True,
                trust_remote_code=False,
                **({} if device_map is None else {"device_map": device_map}),
            )
    except Exception as error:  # damaged weights, configs and tokenizers raise whatever their readers do
        raise DonorError(
            f"donor {source}: transformers cannot load {folder}: {type(error).__name__}: {error}"
        ) from error
    if missing := sorted(loading["missing_keys"]):
        raise DonorError(
            f"donor {source}: {len(missing)} weights are missing from {folder}, the first is {missing[0]}; "
            "they would be random. Fetch the complete model"
        )
    model.requires_grad_(False)
    model.eval()
    if device_map is None:
        model.to(device)
    config = model.config.get_text_config()
    refuse_two_way(model, Path(source).name if Path(source).exists() else str(source))
    codec, bos = _donor_tokenizer(source, folder)
    if progress is not None:
        progress(PHASE, 1, 1)
    return Donor(
        name=Path(source).name if Path(source).exists() else str(source),
        model=model,
        tokenizer=codec,
        bos=bos,
        num_blocks=int(config.num_hidden_layers),
        value_dim=int(config.hidden_size),
        vocab_size=int(model.get_input_embeddings().weight.shape[0]),
        fingerprint=folder_fingerprint(folder),
        architecture=str(config.model_type),
        compute_dtype=dtype,
        tokenizer_losses=tuple(tokenizer_losses(folder)),
        quantised=quantised,
    )


def _donor_tokenizer(source: Any, folder: Path) -> tuple[TextCodec, int | None]:
    """The tokenizer of the folder's file, else the one that transformers builds; and the BOS id."""
    from transformers import AutoTokenizer

    file = folder / "tokenizer.json"
    try:
        built = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # whatever its readers raise
        if not file.is_file():
            raise DonorError(
                f"donor {source}: expected a tokenizer in {folder}, transformers makes none: "
                f"{type(error).__name__}: {error}"
            ) from error
        built = None
    try:
        codec = open_tokenizer(file if file.is_file() else built)
    except FormatError as error:
        raise DonorError(f"donor {source}: {error}") from error
    bos = None if built is None else built.bos_token_id
    return codec, None if bos is None else int(bos)
