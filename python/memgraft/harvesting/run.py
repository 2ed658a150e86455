"""Harvest a key set: judge every key's text, run the donor over the kept ones in chunks, seal the bank.

The chunk is the unit of resumption. Its batches depend on the settings alone, so a harvest that was killed and taken up
again writes the same bytes as one that was not.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from memgraft.bank import Bank, BankWriter
from memgraft.errors import ArgumentError, FingerprintError, KeySetError, TokenError
from memgraft.harvesting.donor import Donor, open_donor
from memgraft.harvesting.forward import check_taps, donor_values
from memgraft.harvesting.prefix import Prefix, PrefixChoice, find_prefix
from memgraft.harvesting.text import DROP_REASONS, RoundTrip, key_texts
from memgraft.keyset import KeySet
from memgraft.tokenizer import TextCodec, differs_from, open_tokenizer, tokenizer_facts

Progress = Callable[[str, int, int], None]
"""Called as ``progress(stage, done, total)`` with stage ``"text"`` or ``"donor"`` and numbers of keys."""

_TEXT_CHUNK = 16384
_STORAGE = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True, kw_only=True)
class HarvestPlan:
    """What a harvest would do, before it is done."""

    num_keys: int
    num_rows: int
    """Keys that would be kept."""
    dropped: dict[str, int]
    taps: tuple[int, ...]
    value_dim: int
    num_bytes: int
    """Bytes of the values."""
    keys_per_second: float
    """Measured on a sample from the middle of the key set."""
    prefix: Prefix | None = None
    """What would stand before every key."""

    @property
    def seconds(self) -> float:
        """Expected time of the donor run."""
        return self.num_rows / self.keys_per_second if self.keys_per_second else 0.0


@dataclass(frozen=True, kw_only=True)
class _Setup:
    recipient: TextCodec
    donor: Donor
    taps: tuple[int, ...]
    round_trip: RoundTrip
    prefix: Prefix


def harvest(
    keys: KeySet,
    *,
    recipient_tokenizer: Any,
    donor: str | Path | Donor,
    taps: Sequence[int],
    out: str | Path,
    dtype: str = "bf16",
    compute_dtype: str = "auto",
    prefix: PrefixChoice = "auto",
    prepend_bos: bool = False,
    round_trip: RoundTrip = "text",
    batch_tokens: int = 1024,
    chunk_rows: int = 2048,
    device: str | None = None,
    resume: bool = True,
    progress: Progress | None = None,
) -> Bank:
    """Run the donor over the keys and write the bank.

    Args:
        keys: what was mined. Keys without a usable text are dropped and counted; the bank holds the others, renumbered.
        recipient_tokenizer: path of ``tokenizer.json`` (or its folder), a ``tokenizers`` or a transformers tokenizer.
        donor: a transformers folder, a ``.gguf`` file, a hub id, or an open `Donor`.
        taps: ascending donor depths; r is the residual stream after r blocks, 0 the embeddings.
        out: the bank directory to be. While it grows it is called ``<out>.partial``.
        dtype: storage type: ``"bf16"``, ``"fp16"`` or ``"fp32"``.
        compute_dtype: type of the donor's run, see `open_donor`; an open `Donor` keeps its own.
        prefix: donor tokens before every key. ``"auto"`` measures behind which of a few words of one token differ most
            at these taps; ``"none"`` (or None) is the isolated n-gram, ``"bos"`` the donor's BOS; else text or ids.
        prepend_bos: put the donor's BOS first; with the default prefix the same as ``prefix="bos"``.
        round_trip: ``"text"`` keeps a key whose text is stable, ``"ids"`` also demands that it encodes to the key.
        batch_tokens: padded donor tokens per batch.
        chunk_rows: rows written, and kept at a kill, at a time.
        device: where the donor runs; the CPU by default.
        resume: take up ``<out>.partial``, and return a finished ``out`` of the same settings; else both are refused.
        progress: see `Progress`.

    Raises:
        DonorError: no such donor or tap, or it is not complete.
        KeySetError: no key is left.
        TokenError: the tokenizer has more tokens than the key set's vocabulary, or a key holds one it does not have.
        FingerprintError: ``out`` or its partial is of other settings, or the keys are of another tokenizer.
        StorageError: the disk refused.
    """
    if dtype not in _STORAGE:
        raise ArgumentError(f"dtype: expected one of {sorted(_STORAGE)}, found {dtype!r}")
    if batch_tokens < 1 or chunk_rows < 1:
        raise ArgumentError(f"batch_tokens {batch_tokens}, chunk_rows {chunk_rows}: expected at least 1")
    out = Path(out)
    setup = _set_up(
        keys,
        recipient_tokenizer,
        donor,
        taps,
        compute_dtype,
        device,
        prefix,
        prepend_bos,
        round_trip,
        recorded=_recorded(out),
        progress=progress,
    )
    kept, dropped = _select(keys, setup, progress)
    how = {
        **setup.prefix.facts(),
        "round_trip": round_trip,
        "batch_tokens": batch_tokens,
        "chunk_rows": chunk_rows,
    }
    facts = {**setup.donor.facts(), **how}
    tokenizer = tokenizer_facts(setup.recipient, keys.vocab_size)
    tokenizer["file_fingerprint"] = tokenizer["file_fingerprint"] or keys.metadata.get("tokenizer")
    if not resume and (out.exists() or out.with_name(out.name + ".partial").exists()):
        raise ArgumentError(f"{out}: exists, or its .partial does; remove it, or harvest with resume=True")
    if out.exists():
        return _finished(out, kept, setup, dtype, facts)
    with BankWriter(
        out, keys=kept, taps=setup.taps, value_dim=setup.donor.value_dim, dtype=dtype, donor=facts, tokenizer=tokenizer
    ) as writer:
        if progress is not None:
            progress("donor", writer.num_done, len(kept))
        for start, stop in writer.missing():
            for first in range(start, stop, chunk_rows):
                last = min(first + chunk_rows, stop)
                values = _values(kept, first, last, setup, batch_tokens).to(_STORAGE[dtype])
                writer.write(first, values.view(torch.uint16).numpy() if dtype == "bf16" else values.numpy())
                if progress is not None:
                    progress("donor", last, len(kept))
        return writer.finish(dropped=dropped)


def plan_harvest(
    keys: KeySet,
    *,
    recipient_tokenizer: Any,
    donor: str | Path | Donor,
    taps: Sequence[int],
    dtype: str = "bf16",
    compute_dtype: str = "auto",
    prefix: PrefixChoice = "auto",
    prepend_bos: bool = False,
    round_trip: RoundTrip = "text",
    batch_tokens: int = 1024,
    device: str | None = None,
    progress: Progress | None = None,
) -> HarvestPlan:
    """Judge every key and time the donor on a sample; write nothing. Arguments and errors as for `harvest`."""
    if dtype not in _STORAGE:
        raise ArgumentError(f"dtype: expected one of {sorted(_STORAGE)}, found {dtype!r}")
    setup = _set_up(
        keys,
        recipient_tokenizer,
        donor,
        taps,
        compute_dtype,
        device,
        prefix,
        prepend_bos,
        round_trip,
        progress=progress,
    )
    kept, dropped = _select(keys, setup, progress)
    middle = max(0, len(kept) // 2 - 256)
    sample = min(512, len(kept) - middle)
    _values(kept, middle, middle + min(sample, 32), setup, batch_tokens)  # warm-up
    started = time.perf_counter()
    _values(kept, middle, middle + sample, setup, batch_tokens)
    rate = sample / (time.perf_counter() - started)
    row_bytes = len(setup.taps) * setup.donor.value_dim * _STORAGE[dtype].itemsize
    return HarvestPlan(
        num_keys=len(keys),
        num_rows=len(kept),
        dropped=dropped,
        taps=setup.taps,
        value_dim=setup.donor.value_dim,
        num_bytes=len(kept) * row_bytes,
        keys_per_second=rate,
        prefix=setup.prefix,
    )


def _set_up(
    keys: KeySet,
    recipient_tokenizer: Any,
    donor: str | Path | Donor,
    taps: Sequence[int],
    compute_dtype: str,
    device: str | None,
    prefix: PrefixChoice,
    prepend_bos: bool,
    round_trip: RoundTrip,
    recorded: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> _Setup:
    recipient = open_tokenizer(recipient_tokenizer)
    if recipient.own_size > keys.vocab_size:
        raise TokenError(
            f"the recipient tokenizer has {recipient.own_size} tokens, "
            f"the key set was mined for a vocabulary of {keys.vocab_size}; "
            "mine again with the tokenizer's size, or name the tokenizer that made these tokens"
        )
    mined_with = keys.metadata.get("tokenizer")
    if recipient.file_fingerprint is not None and mined_with not in (None, recipient.file_fingerprint):
        raise FingerprintError(
            f"tokenizer {recipient_tokenizer}: expected the file {mined_with} that made the keys' tokens, "
            f"found {recipient.file_fingerprint}; name the tokenizer.json that tokenised the corpus"
        )
    opened = open_donor(donor, compute_dtype=compute_dtype, device=device, progress=progress)
    depths = check_taps(opened, taps)
    return _Setup(
        recipient=recipient,
        donor=opened,
        taps=depths,
        round_trip=round_trip,
        prefix=find_prefix(opened, prefix, taps=depths, prepend_bos=prepend_bos, recorded=recorded),
    )


def _recorded(out: Path) -> Mapping[str, Any]:
    """Donor facts of the finished or unfinished bank at ``out``; empty where there is none or it cannot be read."""
    for path in (out / "bank.json", out.with_name(out.name + ".partial") / "state.json"):
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))["donor"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # who opens or resumes it says what is wrong
        return facts if isinstance(facts, dict) else {}
    return {}


def _lists(keys: KeySet, start: int, stop: int) -> list[list[int]]:
    """The keys of rows ``start .. stop`` as lists."""
    arrays = keys.arrays(start, stop)
    tokens, offsets = arrays.tokens.tolist(), arrays.offsets.tolist()
    return [tokens[first:last] for first, last in pairwise(offsets)]


def _select(keys: KeySet, setup: _Setup, progress: Progress | None) -> tuple[KeySet, dict[str, int]]:
    """The keys with a usable text, and how many were dropped for each reason."""
    keep = np.zeros(len(keys), dtype=bool)
    dropped: Counter[str] = Counter()
    for start in range(0, len(keys), _TEXT_CHUNK):
        stop = min(start + _TEXT_CHUNK, len(keys))
        batch = _lists(keys, start, stop)
        _check_known(keys, start, stop, setup.recipient)
        judged = key_texts(batch, setup.recipient, setup.donor.tokenizer, round_trip=setup.round_trip)
        keep[start:stop] = [reason is None for reason in judged.reasons]
        dropped.update(judged.dropped)
        if progress is not None:
            progress("text", stop, len(keys))
    counts = {reason: dropped[reason] for reason in DROP_REASONS if dropped[reason]}
    if not keep.any():
        raise KeySetError(
            f"no key is left to harvest: {len(keys)} mined, dropped {counts or 'none'}; "
            "mine a larger corpus or more orders"
        )
    return (keys if keep.all() else keys.select(keep)), counts


def _check_known(keys: KeySet, start: int, stop: int, recipient: TextCodec) -> None:
    """Decoders skip ids they do not know, which would pass for a shorter key."""
    arrays = keys.arrays(start, stop)
    ids = arrays.tokens
    strange = (ids >= len(recipient.known)) | ~recipient.known[np.minimum(ids, len(recipient.known) - 1)]
    if strange.any():
        place = int(np.flatnonzero(strange)[0])
        row = start + int(np.searchsorted(arrays.offsets, place, side="right")) - 1
        raise TokenError(
            f"key {keys.key(row)} (row {row}): the recipient tokenizer has no token {int(ids[place])}; "
            "name the tokenizer that made these tokens"
        )


def _values(kept: KeySet, start: int, stop: int, setup: _Setup, batch_tokens: int) -> torch.Tensor:
    """Donor states of rows ``start .. stop``: (stop - start, K, V)."""
    judged = key_texts(_lists(kept, start, stop), setup.recipient, setup.donor.tokenizer, round_trip=setup.round_trip)
    tokens = [[*setup.prefix.ids, *key] for key in judged.donor_tokens]
    return donor_values(setup.donor, setup.taps, tokens, max_tokens=batch_tokens)


def _finished(out: Path, kept: KeySet, setup: _Setup, dtype: str, donor: dict[str, Any]) -> Bank:
    """The bank at ``out`` if it is the one these settings make."""
    bank = Bank.open(out)
    manifest = bank.manifest
    recorded = dict(manifest.donor)
    if "prefix" not in recorded:  # written before there were prefixes
        recorded["prefix"] = [setup.donor.bos] if recorded.get("prepend_bos") else []
    if recorded.get("tokenizer_fingerprint") == setup.donor.tokenizer.old_fingerprint:
        recorded["tokenizer_fingerprint"] = setup.donor.tokenizer.fingerprint
    # The same tokens make the same values, whoever chose them.
    donor = {name: value for name, value in donor.items() if not name.startswith("prefix_")}
    expected = {"keyset": kept.fingerprint, "taps": setup.taps, "dtype": dtype, "donor": donor}
    differing = []
    for name, value in expected.items():
        found = recorded if name == "donor" else getattr(manifest, name)
        if isinstance(value, dict):
            pairs = [(f"{name} {entry}", item, found.get(entry)) for entry, item in value.items()]
        else:
            pairs = [(name, value, tuple(found) if name == "taps" else found)]
        differing += [
            f"{label}: expected {wanted!r}, found {there!r}" for label, wanted, there in pairs if wanted != there
        ]
    if difference := differs_from(setup.recipient, manifest.tokenizer):
        differing.append(f"tokenizer: {difference}")
    if differing:
        raise FingerprintError(
            f"{out}: holds a finished bank of another harvest ({'; '.join(differing)}); remove it or name another path"
        )
    return bank
