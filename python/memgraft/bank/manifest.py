"""``bank.json``: what a bank holds and which artifacts belong together."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from memgraft._core import fingerprint_bytes
from memgraft.bank.dtypes import DTYPES
from memgraft.errors import FormatError, StorageError

FORMAT_VERSION = "1.0"
MANIFEST_NAME = "bank.json"
KEYS_NAME = "keys.mgk"
INDEX_NAME = "index.mgi"
_READS = ("prefix", "prepend_bos")
"""Donor facts that say what the donor read before and around a key; others (``mined``, counts, how it ran) do not
change what a value means. ``context``, and what begins with it, is kept for harvests in contexts."""


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One value shard: its name, rows, length and content fingerprint."""

    file: str
    num_rows: int
    num_bytes: int
    content: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The facts of ``bank.json``.

    Attributes:
        keyset: fingerprint of the key set (`keys.mgk`).
        index: fingerprint of the index (`index.mgi`).
        corpus: what the keys were mined from, with its ``fingerprint``.
        tokenizer: the recipient tokenizer, with its ``fingerprint``.
        donor: the donor, with its ``fingerprint``, and how it was run.
        taps: donor depths, one per tap of the values.
        value_dim: channels per tap.
        dtype: storage type of the values.
        num_rows: rows.
        shards: the value shards in row order.
        dropped: keys that were mined and not harvested, by reason.
        tool: name and version of the writer; not part of the fingerprint.
        stored_space: the value space as it was recorded (`value_space`); empty in banks from before it was.
        fingerprint: hash of everything else but ``tool``.
    """

    keyset: str
    index: str
    corpus: Mapping[str, Any]
    tokenizer: Mapping[str, Any]
    donor: Mapping[str, Any]
    taps: tuple[int, ...]
    value_dim: int
    dtype: str
    num_rows: int
    shards: tuple[ShardEntry, ...]
    dropped: Mapping[str, int]
    tool: str
    format_version: str = FORMAT_VERSION
    stored_space: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: str = field(default="")

    def sealed(self) -> "Manifest":
        """A copy with its value space and its fingerprint set."""
        whole = replace(self, stored_space=self.value_space)
        return replace(whole, fingerprint=_fingerprint(json.loads(whole.to_json())))

    @property
    def space(self) -> str:
        """Fingerprint of the value space: donor, taps, width, and what the donor read; not rows, keys or dtype."""
        return str(self.value_space["fingerprint"])

    @property
    def value_space(self) -> Mapping[str, Any]:
        """The value space by name, with its ``fingerprint``: as recorded, or computed for a bank that records none."""
        return self.stored_space or space_facts(self.donor, self.taps, self.value_dim)

    def to_json(self) -> str:
        """The text of ``bank.json``."""
        facts = asdict(self)
        if space := facts.pop("stored_space"):
            facts["value_space"] = space
        return json.dumps(facts, indent=2) + "\n"

    @classmethod
    def read(cls, path: Path) -> "Manifest":
        """Reads and checks ``bank.json`` at ``path``.

        Raises:
            StorageError: the file is missing or cannot be read.
            FormatError: damaged, edited, or of another version.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            hint = "expected a bank directory with a bank.json"
            partial = path.parent.with_name(path.parent.name + ".partial")
            if path.parent.name.endswith(".partial") and path.parent.is_dir():
                hint = "this one is unfinished: run the same harvest again to finish it"
            elif partial.exists():
                hint += f"; {partial} holds an unfinished one: run the same harvest again to finish it"
            raise StorageError(f"{path}: not found: {hint}") from None
        except UnicodeDecodeError as error:
            raise FormatError(f"{path}: not UTF-8 text: {error}; restore the file") from None
        except NotADirectoryError:
            raise StorageError(
                f"{path.parent}: expected a bank directory, found a file; KeySet.open and NgramIndex.open read keys "
                "and index of one"
            ) from None
        except OSError as error:
            raise StorageError(f"{path}: cannot be read: {error.strerror}") from error
        try:
            facts = json.loads(text)
        except json.JSONDecodeError as error:
            raise FormatError(f"{path}: not JSON: {error}; restore the file") from None
        return cls._from_facts(path, facts)

    @classmethod
    def _from_facts(cls, path: Path, facts: Any) -> "Manifest":
        version = facts.get("format_version") if isinstance(facts, dict) else None
        if not isinstance(version, str):
            raise FormatError(f"{path}: expected a manifest with a format_version, found none: not a bank")
        if version.split(".")[0] != FORMAT_VERSION.split(".")[0]:
            raise FormatError(
                f"{path}: expected format version {FORMAT_VERSION}, found {version}; use the memgraft that wrote it "
                f"({facts.get('tool', 'unknown')}) or harvest again"
            )
        names = {item.name for item in fields(cls)} - {"stored_space"}
        if missing := sorted(names - facts.keys()):
            raise FormatError(f"{path}: expected the entries {', '.join(missing)}, found none; restore the file")
        try:
            shards = tuple(ShardEntry(**shard) for shard in facts["shards"])
            given = {name: facts[name] for name in names} | {"stored_space": _stored_space(path, facts)}
            manifest = cls(**{**given, "shards": shards, "taps": tuple(facts["taps"])})
        except TypeError as error:
            raise FormatError(f"{path}: malformed entry: {error}; restore the file") from None
        found = _fingerprint(facts)
        if found != manifest.fingerprint:
            raise FormatError(
                f"{path}: edited or damaged: expected fingerprint {manifest.fingerprint}, found {found}; "
                "restore the file (facts of a bank are not for editing)"
            )
        if manifest.dtype not in DTYPES:
            raise FormatError(f"{path}: expected dtype one of {', '.join(DTYPES)}, found {manifest.dtype!r}")
        return manifest


def _stored_space(path: Path, facts: Mapping[str, Any]) -> Mapping[str, Any]:
    space = facts.get("value_space", {})
    if not isinstance(space, dict) or (space and not isinstance(space.get("fingerprint"), str)):
        raise FormatError(f"{path}: malformed entry value_space: expected its fingerprint, found {space!r}; restore it")
    return space


def space_facts(donor: Mapping[str, Any], taps: Sequence[int], value_dim: int) -> dict[str, Any]:
    """What a graft is trained against, by name: all that changes what a value means, and nothing else.

    Two donors are the same where their weights are; without a fingerprint the name stands for them. A bank that names
    no donor shares its space with others that name none, of the same taps and width.
    """
    reads = {name: value for name, value in donor.items() if name in _READS or name.startswith("context")}
    # No prefix and none recorded (banks from before prefixes say whether BOS stood in front) are the same.
    reads = {name: list(value) if isinstance(value, tuple) else value for name, value in reads.items() if value}
    weights = donor.get("fingerprint") or donor.get("name")
    content = {"donor": {"weights": weights, "reads": reads}, "taps": list(taps), "value_dim": value_dim}
    fingerprint = fingerprint_bytes(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())
    return {"fingerprint": fingerprint, "donor": weights, "taps": list(taps), "value_dim": value_dim, **reads}


def value_space(donor: Mapping[str, Any], taps: Sequence[int], value_dim: int) -> str:
    """The fingerprint of `space_facts`."""
    return str(space_facts(donor, taps, value_dim)["fingerprint"])


def differing_space(expected: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Says by name what two value spaces differ in: ``expected taps [8], found [16]``."""
    names = [name for name in {**expected, **found} if name != "fingerprint"]
    differing = [
        f"expected {name} {expected.get(name, 'none')}, found {found.get(name, 'none')}"
        for name in names
        if expected.get(name) != found.get(name)
    ]
    if not differing:
        return f"expected value space {expected.get('fingerprint')}, found {found.get('fingerprint')}"
    return "; ".join(differing)


def _fingerprint(facts: dict[str, Any]) -> str:
    """Hash of the parsed entries of a manifest, entries of later minor versions included."""
    content = {name: value for name, value in facts.items() if name not in ("fingerprint", "tool")}
    return fingerprint_bytes(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())
