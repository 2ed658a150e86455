"""Rows of a bank computed again, one key at a time, and compared with what is stored."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from memgraft.arguments import refuse_paths
from memgraft.bank import Bank
from memgraft.bank.dtypes import FloatArray
from memgraft.bank.provenance import Origins, sources_of
from memgraft.corpus import Corpus
from memgraft.errors import ArgumentError
from memgraft.harvesting.devices import best_device
from memgraft.harvesting.diagnosis import Finding, explain
from memgraft.harvesting.donor import Donor, open_donor
from memgraft.harvesting.occurrences import Contexts
from memgraft.harvesting.packing import IntArray
from memgraft.harvesting.readers import mined_corpus
from memgraft.harvesting.rereading import Rereading
from memgraft.harvesting.text import TextCodec
from memgraft.harvesting.windows import Windows
from memgraft.progress import Progress, callback
from memgraft.tokenizer import differs_from, open_tokenizer, recorded_facts

_MOST_SHOWN = 10
"""Rows that a note lists."""


@dataclass(frozen=True, kw_only=True)
class RowCheck:
    """What recomputing a sample of rows found."""

    path: Path
    rows: IntArray
    """(N,) the sampled rows, ascending."""
    errors: FloatArray
    """(N, taps) distance to the recomputed value as a share of its norm; NaN where there is none to compare with."""
    limits: FloatArray
    """(N, taps) what rounding may do."""
    num_differing: int
    """Rows further away than that, or nearer to another tap."""
    findings: tuple[Finding, ...]
    """What differs and why; empty where all rows are right."""
    notes: tuple[str, ...]
    """Where donor or tokenizers are not the recorded ones and the values do not show it; rows that were taught."""
    taught: IntArray
    """Rows of a merged bank that `teach` trained, ascending: no donor makes them again, none is in the sample."""
    compute_dtype: str
    """The type that the donor ran in."""

    @property
    def ok(self) -> bool:
        """Whether every sampled row is what its donor says."""
        return not self.findings

    @property
    def largest_error(self) -> float:
        """The largest error of a row that could be compared; NaN where none could."""
        return float(np.nanmax(self.errors)) if not np.isnan(self.errors).all() else float("nan")


def verify_rows(
    bank: Bank,
    *,
    donor: str | Path | Donor,
    sample: int = 256,
    seed: int = 0,
    recipient_tokenizer: Any = None,
    corpus: Corpus | None = None,
    compute_dtype: str | None = None,
    device: str | None = None,
    progress: Progress | bool | None = None,
) -> RowCheck:
    """Recomputes random rows of ``bank`` the naive way, each key alone, and says what differs from them and why.

    Args:
        bank: one bank; of a stack, each by itself.
        donor: what the bank was harvested from, as for `memgraft.harvest`.
        sample: rows, all different; the whole bank where it has fewer.
        seed: chooses them.
        recipient_tokenizer: the one that made the keys; by default the bank's own file.
        corpus: for a bank that was harvested in contexts, the one that its keys were mined from.
        compute_dtype: type of the donor's run; by default the one that the bank records.
        device: as for `memgraft.harvest`.
        progress: True for bars, or called as ``progress("rows", done, total)``.

    Raises:
        ArgumentError: a stack, no rows, rows that were taught, no tokenizer, or contexts without a corpus.
        FingerprintError: another corpus.
        DonorError: the donor cannot be opened.
    """
    refuse_paths(bank=bank, corpus=corpus)
    progress = callback(progress)
    recipient = _recipient(bank, sample, recipient_tokenizer)
    facts = bank.manifest.donor
    taught, sources = _taught(bank)
    if len(taught) == bank.num_rows and sources:
        raise ArgumentError(
            f"{bank.path}: its rows were taught (from {', '.join(sources)}), so that no donor makes them "
            "again; `verify` without a donor checks its bytes, teaching.json says what they do"
        )
    recorded = str(facts.get("compute_dtype", "auto"))
    contexts = Contexts.recorded(facts, bank.keys)
    mined = mined_corpus(bank.keys, contexts, corpus)
    opened = open_donor(
        donor,
        compute_dtype=compute_dtype or recorded,
        device=device if isinstance(donor, Donor) else best_device(device),
        progress=progress,
    )
    harvested = np.setdiff1d(np.arange(bank.num_rows), taught, assume_unique=True)
    rows = np.sort(np.random.default_rng(seed).choice(harvested, min(sample, len(harvested)), replace=False))
    found: dict[str, Any] = {"path": bank.path, "rows": rows, "compute_dtype": opened.compute_dtype, "taught": taught}
    notes = _notes_of_taught(bank, taught, sources)
    differences = _not_as_recorded(bank, recipient, opened)
    # Banks from before there were prefixes say whether the BOS stood before each key.
    head = tuple(int(token) for token in facts.get("prefix", [opened.bos] if facts.get("prepend_bos") else []))
    stranger = bool(differences) and max(head, default=-1) >= opened.vocab_size
    if stranger or opened.value_dim != bank.value_dim or bank.taps[-1] > opened.num_blocks:
        errors = np.full((len(rows), len(bank.taps)), np.nan, np.float32)
        text = (
            f"another donor: {opened.name} has {opened.num_blocks} blocks of width {opened.value_dim} and "
            f"{opened.vocab_size} tokens, the bank has taps {list(bank.taps)} of width {bank.value_dim} and the prefix "
            f"{list(head)}"
        )
        finding = Finding(kind="donor", text=text, way_out=_name_donor(bank), num_rows=len(rows))
        return RowCheck(
            **found,
            errors=errors,
            limits=np.zeros_like(errors),
            num_differing=len(rows),
            findings=(finding,),
            notes=notes,
        )
    windows = None
    if contexts is not None and mined is not None:
        windows = Windows.of(mined, contexts, bank.keys, recipient, opened.tokenizer)
    reading = Rereading(bank, recipient, opened, head, windows)
    errors, nearer = reading.errors(rows, progress)
    rounding = reading.rounding(rows, recorded)
    limits = reading.limits(rows, rounding)
    differing = ~(errors <= limits).all(1) | nearer
    findings: list[Finding] = []
    if differing.any():
        device = device if isinstance(donor, Donor) else best_device(device)
        findings = explain(reading, rows[differing], rounding, source=donor, device=device)
        if differences and findings[0].kind in ("donor", "damage", "tokenizer"):
            # What cannot be told from the values is what the record says.
            findings = [replace(finding, num_rows=int(differing.sum())) for finding in differences]
    return RowCheck(
        **found,
        errors=errors,
        limits=limits,
        num_differing=int(differing.sum()),
        findings=tuple(findings),
        notes=(
            *(finding.text for finding in differences if finding.text not in {each.text for each in findings}),
            *notes,
        ),
    )


def _taught(bank: Bank) -> tuple[IntArray, list[str]]:
    """Rows that were taught, ascending, and what from; of a bank made of banks by the origin of each row."""
    sources = sources_of(bank.layers)
    taught = [number for number, source in enumerate(sources) if "taught" in source["donor"]]
    rows = np.flatnonzero(
        np.isin(Origins.of_rows(bank.layers, np.arange(bank.num_rows, dtype=np.int32)).sources, taught)
    )
    return rows, [str(sources[number]["donor"]["taught"].get("source")) for number in taught]


def _notes_of_taught(bank: Bank, taught: IntArray, sources: list[str]) -> tuple[str, ...]:
    if not len(taught):
        return ()
    shown = ", ".join(str(row) for row in taught[:_MOST_SHOWN]) + (", …" if len(taught) > _MOST_SHOWN else "")
    return (
        f"{len(taught):,} of {bank.num_rows:,} rows were taught (from {', '.join(sources)}), which no donor makes; "
        f"left out: {shown}",
    )


def _recipient(bank: Bank, sample: int, tokenizer: Any) -> TextCodec:
    if len(bank.layers) > 1:
        raise ArgumentError(f"{bank.path}: expected one bank, found a stack of {len(bank.layers)}; verify each alone")
    if sample < 1:
        raise ArgumentError(f"sample: expected at least 1 row, found {sample}")
    if tokenizer is None:
        tokenizer = bank.tokenizer_path
    if tokenizer is None:
        raise ArgumentError(f"{bank.path}: expected the recipient's tokenizer in it, found none; give tokenizer=<path>")
    return open_tokenizer(tokenizer)


def _name_donor(bank: Bank) -> str:
    facts = bank.manifest.donor
    return f"name the donor that the bank was harvested from: {facts.get('name')}, weights {facts.get('fingerprint')}"


def _not_as_recorded(bank: Bank, recipient: TextCodec, donor: Donor) -> list[Finding]:
    """Where donor and tokenizers are other ones than the bank records."""
    facts, mined = bank.manifest.donor, bank.keys.metadata
    found = []
    if facts.get("fingerprint") not in (None, donor.fingerprint):
        text = f"another donor: expected weights {facts['fingerprint']}, found {donor.fingerprint} in {donor.name}"
        found.append(Finding(kind="donor", text=text, way_out=_name_donor(bank), num_rows=0))
    difference = differs_from(recipient, bank.manifest.tokenizer) or differs_from(
        recipient, recorded_facts(mined.get("tokenizer"), mined.get("tokenizer_mapping"))
    )
    if difference:
        way_out = "name the tokenizer.json that tokenised the corpus of the keys"
        text = f"another recipient tokenizer: {difference}"
        found.append(Finding(kind="tokenizer", text=text, way_out=way_out, num_rows=0))
    own = donor.tokenizer
    if facts.get("tokenizer_fingerprint") not in (None, own.fingerprint, own.old_fingerprint):
        text = f"another donor tokenizer: expected {facts['tokenizer_fingerprint']}, found {own.fingerprint}"
        way_out = f"put the tokenizer.json back that donor {donor.name} had when the bank was harvested"
        found.append(Finding(kind="tokenizer", text=text, way_out=way_out, num_rows=0))
    return found
