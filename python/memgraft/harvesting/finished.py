"""A bank that is there already: the one that a harvest's settings make, or refused by what differs."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memgraft.bank import Bank
from memgraft.bank.checks import check_settings
from memgraft.errors import FingerprintError
from memgraft.harvesting.selecting import select_keys
from memgraft.keyset import KeySet
from memgraft.tokenizer import differs_from

if TYPE_CHECKING:
    from memgraft.harvesting.setup import Setup

# The same tokens make the same values, whoever chose them and however many run at a time; sharing and counts follow.
_FOLLOWS = (
    *("batch_tokens", "chunk_rows"),
    *("prefix_", "shared_prefixes", "num_donor_tokens", "num_prefixes", "storage"),
    *("probe", "shortest_key", "num_occurrences", "num_windows", "num_without_occurrence"),
)


def refuse_other_begun(out: Path, dtype: str, taps: Sequence[int]) -> None:
    """Refuses an unfinished bank at ``out`` that was begun with another type or other taps, before the donor is opened.

    Raises:
        FingerprintError: it was.
    """
    state = out.with_name(out.name + ".partial") / "state.json"
    try:
        begun = json.loads(state.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return  # there is none, or who resumes it says what is wrong
    if isinstance(begun, dict):
        check_settings(state, {**begun, "dtype": dtype, "taps": list(taps)})


def facts_at(out: Path) -> Mapping[str, Any]:
    """Donor facts of the finished or unfinished bank at ``out``; empty where there is none or it cannot be read."""
    for path in (out / "bank.json", out.with_name(out.name + ".partial") / "state.json"):
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))["donor"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # who opens or resumes it says what is wrong
        return facts if isinstance(facts, dict) else {}
    return {}


def finished_bank(out: Path, keys: KeySet, setup: "Setup", dtype: str, donor: Mapping[str, Any]) -> Bank:
    """The bank at ``out`` if it is the one these settings make.

    Raises:
        FingerprintError: it is another.
    """
    recorded = Bank.open(out).manifest.donor
    facts = {name: value for name, value in donor.items() if not name.startswith(_FOLLOWS)}
    expected: dict[str, Any] = {"dtype": dtype, "taps": setup.taps, "donor": facts}
    if "mined" not in recorded:  # written before banks named what was mined
        del facts["mined"]
        selection = select_keys(keys, setup.recipient, setup.donor.tokenizer, setup.round_trip)
        expected["keyset"] = selection.kept.fingerprint
    refuse_other(out, expected, setup)
    return Bank.open(out)


def refuse_other(out: Path, expected: Mapping[str, Any], setup: "Setup | None" = None) -> None:
    """Refuses a finished bank that other settings made; without ``setup``, before the donor is opened.

    Raises:
        FingerprintError: it differs from ``expected``, facts of its manifest.
    """
    manifest = Bank.open(out).manifest
    recorded = dict(manifest.donor)
    differing: list[str] = []
    if setup is not None:
        if "prefix" not in recorded:  # written before there were prefixes
            recorded["prefix"] = [setup.donor.bos] if recorded.get("prepend_bos") else []
        if recorded.get("tokenizer_fingerprint") == setup.donor.tokenizer.old_fingerprint:
            recorded["tokenizer_fingerprint"] = setup.donor.tokenizer.fingerprint
    for name, value in expected.items():
        found = recorded if name == "donor" else getattr(manifest, name)
        if isinstance(value, dict):
            pairs = [(f"{name} {entry}", item, found.get(entry)) for entry, item in value.items()]
        else:
            pairs = [(name, value, tuple(found) if name == "taps" else found)]
        differing += [
            f"{label}: expected {wanted!r}, found {there!r}" for label, wanted, there in pairs if wanted != there
        ]
    if setup is not None and (difference := differs_from(setup.recipient, manifest.tokenizer)):
        differing.append(f"tokenizer: {difference}")
    if differing:
        raise FingerprintError(
            f"{out}: holds a finished bank of another harvest ({'; '.join(differing)}); remove it or name another path"
        )
