"""Save a graft to a folder and load it onto a recipient."""

from __future__ import annotations

import dataclasses
import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from memgraft import __version__
from memgraft.bank import Manifest, Memory, open_memory_of
from memgraft.bank.manifest import MANIFEST_NAME as MANIFEST_OF_BANK
from memgraft.bank.manifest import differing_space
from memgraft.bank.overlay import Where
from memgraft.config import GraftConfig
from memgraft.errors import ArgumentError, FingerprintError, FormatError, GraftError, MemgraftError, StorageError
from memgraft.integrations.transformers.attach import attach, check_tokenizer, check_vocabulary, detach, graft_layers
from memgraft.integrations.transformers.card import model_card
from memgraft.integrations.transformers.families import (
    find_decoder,
    inspect_recipient,
    text_config,
    unwrap,
    vocab_size_of,
)
from memgraft.integrations.transformers.loading import settle
from memgraft.integrations.transformers.locate import CHECKPOINT_FOLDER, graft_folder
from memgraft.integrations.transformers.runtime import GraftRuntime, the_runtime
from memgraft.integrations.transformers.weights import copy_weights, whole_weights
from memgraft.nn.compression import CompressedVocabulary
from memgraft.system import written_beside

Model = TypeVar("Model", bound=nn.Module)
GRAFT_FORMAT_VERSION = 1
__all__ = [
    "CHECKPOINT_FOLDER",
    "graft_state_dict",
    "load_graft",
    "read_graft",
    "restore_weights",
    "save_graft",
    "write_graft",
]
WEIGHTS_NAME, MANIFEST_NAME, CARD_NAME = "graft.safetensors", "graft.json", "README.md"


def save_graft(
    recipient: nn.Module,
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    bank_path: str | None = None,
    gather: Callable[[Tensor], Tensor] | None = None,
) -> Path:
    """Writes a graft's weights, config and model card into a folder; the bank stays where it is and is named.

    Args:
        recipient: the grafted model, wrapped or not.
        path: the folder; made if missing, its graft files are replaced.
        name: the graft, if there are several.
        bank_path: where the bank may be found by default, from the folder if relative; recorded as given. ``None``
            records none.
        gather: turns a sharded parameter into a whole one (FSDP2: ``lambda p: p.full_tensor()``, on every rank).

    Returns:
        The folder.

    Raises:
        GraftError: there is no such graft, a weight cannot be found whole, or another bank is at ``bank_path``.
        StorageError: the disk refused.
    """
    decoder, _ = find_decoder(unwrap(recipient))
    _warn_of_a_trained_recipient(unwrap(recipient), the_runtime(decoder, name))
    return write_graft(recipient, Path(path), name=name, bank_path=bank_path, gather=gather)


def write_graft(
    recipient: nn.Module,
    folder: Path,
    *,
    name: str | None = None,
    bank_path: str | None = None,
    gather: Callable[[Tensor], Tensor] | None = None,
) -> Path:
    """:func:`save_graft` beside a recipient that is saved too."""
    runtime = the_runtime(find_decoder(unwrap(recipient))[0], name)
    if bank_path is not None:
        _check_bank_path(folder, bank_path, runtime)
    weights = whole_weights(recipient, runtime, gather)
    manifest = _manifest(runtime, unwrap(recipient), bank_path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        metadata = {"format": "pt", "memgraft_format_version": str(GRAFT_FORMAT_VERSION)}
        _replace(folder / WEIGHTS_NAME, lambda target: save_file(weights, target, metadata=metadata))
        # The manifest last: a folder with one is whole.
        _replace(folder / CARD_NAME, lambda target: _write(target, model_card(manifest)))
        _replace(folder / MANIFEST_NAME, lambda target: _write(target, json.dumps(manifest, indent=2) + "\n"))
    except OSError as error:
        raise StorageError(f"{folder}: cannot write the graft: {error}") from error
    return folder


def load_graft(
    recipient: Model,
    path: str | os.PathLike[str],
    *,
    bank: Memory | Where | None = None,
    tokenizer: Any = None,
    name: str | None = None,
    rows: Literal["same", "any"] = "same",
) -> Model:
    """Attaches a saved graft.

    Args:
        recipient: the model it was trained on, or one alike.
        path: the folder, one with ``graft/`` in it (what ``memgraft train`` keeps), a Trainer's checkpoint that
            `GraftCallback` wrote a graft into, or a repository of the hub (``"user/name"``, fetched through
            huggingface_hub into its cache).
        bank: the open bank or its path; ``None`` opens the recorded path.
        tokenizer: checked against the graft's compressed vocabulary if given (a transformers tokenizer or a path to
            ``tokenizer.json``).
        name: attach under another name.
        rows: ``"same"`` takes the bank that the graft was trained on and no other; ``"any"`` takes each bank of its
            value space (`Bank.space`): one with more rows, others, or of another dtype.

    A recipient of another architecture than the graft was trained on is warned of.

    Raises:
        ArgumentError: another ``rows``, or no model.
        GraftError: missing or extra weights, or another recipient shape.
        FingerprintError: another bank, or another tokenizer.
        FormatError: a file of the folder is damaged or of another version.
        StorageError: a file cannot be read.
    """
    if rows not in ("same", "any"):
        raise ArgumentError(f"rows: expected 'same' or 'any', found {rows!r}")
    folder = graft_folder(path, name)
    manifest, weights = read_graft(folder)
    config = GraftConfig.from_dict(manifest["config"])
    memory = named_bank(folder, manifest, bank) if rows == "same" else _any_bank(folder, manifest, bank)
    _check_recipient(folder, manifest, unwrap(recipient))
    rows_now = inspect_recipient(recipient).vocab_size
    if rows_now < manifest["recipient"]["vocab_size"]:
        # It never had all the keys' tokens, or lost them without the graft: not the recipient that was trained.
        check_vocabulary(memory, rows_now)
    vocabulary = _vocabulary_of(folder, config, weights)
    if tokenizer is not None:
        check_tokenizer(memory, tokenizer)
    if tokenizer is not None and vocabulary is not None:
        ours = CompressedVocabulary.from_tokenizer(tokenizer, vocab_size=len(vocabulary))
        num_shared = min(len(ours), len(vocabulary))
        differing = int((ours.ids[:num_shared] != vocabulary.ids[:num_shared]).sum())
        if differing:
            raise FingerprintError(
                f"{folder}: the tokenizer compresses {differing} of {num_shared} tokens "
                "differently from the graft's: load it with the tokenizer that it was trained with"
            )
    name = name or str(manifest["name"])
    # The resolved ids stand in for "recipient": another recipient's EOS would move the segments, and another padding
    # token the hashes at their starts.
    config = dataclasses.replace(config, eos_token_id=tuple(manifest["eos_ids"]) or None)
    if config.fallback is not None and manifest.get("pad_token_id") is not None:
        pinned = dataclasses.replace(config.fallback, pad_token_id=int(manifest["pad_token_id"]))
        config = dataclasses.replace(config, fallback=pinned)
    attach(recipient, memory, config, name=name, vocabulary=vocabulary)
    the_runtime(find_decoder(unwrap(recipient))[0], name).trained_on = _trained_on(manifest)
    try:
        load_weights(recipient, name, weights, folder)
    except GraftError:
        detach(recipient, name)
        raise
    return recipient


def _check_bank_path(folder: Path, bank_path: str, runtime: GraftRuntime) -> None:
    try:
        # The folder need not be there yet, so that ".." is taken by name.
        found = Manifest.read(Path(os.path.normpath(folder / bank_path)) / MANIFEST_OF_BANK).fingerprint
    except MemgraftError as error:
        raise GraftError(
            f"bank_path {bank_path!r}: no bank is there, seen from {folder}; give the path from the graft's folder, an "
            f"absolute one, or none. {error}"
        ) from error
    if found != runtime.bank.fingerprint:
        raise GraftError(
            f"bank_path {bank_path!r}: expected the graft's bank {runtime.bank.fingerprint}, found {found} there"
        )


def _warn_of_a_trained_recipient(model: nn.Module, runtime: GraftRuntime) -> None:
    changed = sum(
        parameter._version > runtime.versions.get(name, parameter._version)
        for name, parameter in model.named_parameters()
    )
    if changed:
        warnings.warn(
            f"{changed} weights of the recipient changed since the graft was attached, and a saved graft does not hold "
            "them: save the recipient too (save_pretrained, or detach() first), or train the graft alone "
            "(mark_trainable)",
            stacklevel=3,
        )


def graft_state_dict(recipient: nn.Module, name: str | None = None) -> dict[str, Tensor]:
    """A graft's tensors by ``sites.<site>.<name in the layer>``, as they are saved."""
    decoder, _ = find_decoder(unwrap(recipient))
    return own_state(recipient, the_runtime(decoder, name).name)


def own_state(recipient: nn.Module, name: str) -> dict[str, Tensor]:
    """The tensors of a graft's layers, by the names that its file has for them."""
    return {
        f"sites.{site}.{key}": tensor
        for site, layer in graft_layers(recipient, name).get(name, {}).items()
        for key, tensor in layer.state_dict().items()
    }


def _manifest(runtime: GraftRuntime, model: nn.Module, bank_path: str | None) -> dict[str, Any]:
    bank = runtime.bank
    return {
        "format_version": GRAFT_FORMAT_VERSION,
        "memgraft_version": __version__,
        "name": runtime.name,
        "config": runtime.config.to_dict(),
        "eos_ids": list(runtime.eos_ids),
        "pad_token_id": runtime.pad_token_id,
        "bank": {
            "fingerprint": bank.fingerprint,
            "space": bank.space,
            "value_space": dict(bank.manifest.value_space),
            "trained_on": runtime.trained_on or bank.fingerprint,
            "path": bank_path,
            "num_rows": bank.num_rows,
            "value_dim": bank.value_dim,
            "taps": list(bank.taps),
        },
        "recipient": {
            "model_type": text_config(model).model_type,
            "hidden_dim": runtime.hidden_dim,
            "vocab_size": vocab_size_of(model),
        },
    }


def read_graft(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The manifest and weights of a saved graft.

    Raises:
        FormatError: a file is damaged or of another version.
        StorageError: a file cannot be read.
    """
    manifest = _read_manifest(folder)
    try:
        return manifest, load_file(folder / WEIGHTS_NAME)
    except (SafetensorError, OSError) as error:
        kind = StorageError if isinstance(error, OSError) else FormatError
        raise kind(f"{folder / WEIGHTS_NAME}: {error}") from error


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST_NAME
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StorageError(f"{path}: cannot read: {error}; a graft is a folder that save_graft() wrote") from error
    except ValueError as error:
        raise FormatError(f"{path}: not JSON: {error}; restore the file") from error
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if version != GRAFT_FORMAT_VERSION:
        raise FormatError(f"{path}: expected graft format {GRAFT_FORMAT_VERSION}, found {version!r}")
    missing = sorted({"name", "config", "eos_ids", "bank", "recipient"} - set(manifest))
    if missing:
        raise FormatError(f"{path}: {', '.join(missing)} missing; restore the file")
    found: dict[str, Any] = manifest
    return found


def named_bank(folder: Path, manifest: Mapping[str, Any], bank: Memory | Where | None) -> Memory:
    """The bank that the graft was trained on, or saved with."""
    memory, facts = open_memory_of(folder, manifest["bank"], bank), manifest["bank"]
    if memory.fingerprint not in (facts["fingerprint"], _trained_on(manifest)):
        way_out = ""
        if facts.get("space") == memory.space:
            way_out = '; it is of the same value space: load_graft(..., rows="any") takes it'
        raise FingerprintError(
            f"{folder}: expected bank {facts['fingerprint']}, found {memory.fingerprint}: the graft was trained on "
            f"another bank{way_out}"
        )
    return memory


def _any_bank(folder: Path, manifest: Mapping[str, Any], bank: Memory | Where | None) -> Memory:
    """A bank of the graft's value space."""
    memory, facts = open_memory_of(folder, manifest["bank"], bank), manifest["bank"]
    known = (facts["fingerprint"], _trained_on(manifest))
    if memory.fingerprint not in known and facts.get("space") != memory.space:
        raise FingerprintError(
            f"{folder}: the graft reads values of space {facts.get('space', 'unknown (saved before spaces were)')}, "
            f"the bank {memory.fingerprint} is of space {memory.space}{_named(facts, memory)}: harvest it with the "
            f"donor, taps and prefix of bank {_trained_on(manifest)}"
        )
    return memory


def _named(facts: Mapping[str, Any], memory: Memory) -> str:
    """What the spaces differ in, where the graft says what its own is."""
    if not isinstance(space := facts.get("value_space"), dict):
        return ""
    return f" ({differing_space(space, memory.manifest.value_space)})"


def _trained_on(manifest: Mapping[str, Any]) -> str:
    return str(manifest["bank"].get("trained_on") or manifest["bank"]["fingerprint"])


def _check_recipient(folder: Path, manifest: Mapping[str, Any], model: nn.Module) -> None:
    # The embedding may have grown or shrunk since: ids that no key holds are misses, and graft() refuses keys past it.
    found, expected = text_config(model).hidden_size, manifest["recipient"]["hidden_dim"]
    if expected != found:
        raise GraftError(f"{folder}: expected a recipient of hidden_dim {expected}, found {found}")
    trained, here = manifest["recipient"].get("model_type"), text_config(model).model_type
    if trained not in (None, here):
        warnings.warn(
            f"{folder}: the graft was trained on a recipient of type {trained!r}, this one is {here!r}; unless these "
            "are the same weights under another name, load it onto the recipient that it was trained on",
            stacklevel=3,
        )


def _vocabulary_of(folder: Path, config: GraftConfig, weights: Mapping[str, Tensor]) -> CompressedVocabulary | None:
    if config.active_fallback is None:
        return None
    key = f"sites.{config.sites[0]}.fallback.compressed_ids"
    if key not in weights:
        raise GraftError(f"{folder / WEIGHTS_NAME}: missing weights: {key}")
    return CompressedVocabulary(weights[key].numpy())


def restore_weights(recipient: nn.Module, name: str, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Overwrites a graft's weights in place.

    Raises:
        GraftError: missing or extra weights, another shape, or weights that do not lie whole in this process.
    """
    load_weights(recipient, name, weights, folder)


def load_weights(recipient: nn.Module, name: str, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Puts the tensors read from ``folder`` into a graft's layers.

    Raises:
        GraftError: one is missing, one too many, or of another shape.
    """
    state = own_state(recipient, name)
    missing, extra = sorted(set(state) - set(weights)), sorted(set(weights) - set(state))
    if missing or extra:
        raise GraftError(
            f"{folder / WEIGHTS_NAME}: missing weights: {', '.join(missing) or 'none'}; extra weights: "
            f"{', '.join(extra) or 'none'}: the file does not belong to its graft.json"
        )
    runtime = the_runtime(find_decoder(unwrap(recipient))[0], name)
    for key, tensor in weights.items():
        # The shapes as they were made: what is held in parts shows others.
        if tuple(tensor.shape) != runtime.shapes[key]:
            raise GraftError(
                f"{folder / WEIGHTS_NAME}: {key}: expected shape {runtime.shapes[key]}, found {tuple(tensor.shape)}"
            )
    copy_weights(recipient, runtime, weights)
    settle(runtime, loaded=True)


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def _replace(path: Path, write: Callable[[str], None]) -> None:
    """Writes beside, fsyncs, renames, fsyncs the folder."""
    with written_beside(path) as beside:
        write(str(beside))
