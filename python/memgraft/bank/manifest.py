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
#: Donor facts that say what the donor read before and around a key; others (``mined``, counts, how it ran) do not
#: change what a value means. ``context``, and what begins with it, is kept for harvests in contexts.
_READS = ("prefix", "prepend_bos")


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
    fingerprint: str = field(default="")

    def sealed(self) -> "Manifest":
        """A copy with its fingerprint set."""
        return replace(self, fingerprint=_fingerprint(json.loads(self.to_json())))

    @property
    def space(self) -> str:
        """Fingerprint of the value space: donor, taps, width, and what the donor read; not rows, keys or dtype."""
        return value_space(self.donor, self.taps, self.value_dim)

    def to_json(self) -> str:
        """The text of ``bank.json``."""
        return json.dumps(asdict(self), indent=2) + "\n"

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
            if partial.exists():
                hint += f"; {partial} holds an unfinished one: run the same harvest again to finish it"
            raise StorageError(f"{path}: not found: {hint}") from None
        except UnicodeDecodeError as error:
            raise FormatError(f"{path}: not UTF-8 text: {error}; restore the file") from None
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
        names = {item.name for item in fields(cls)}
        if missing := sorted(names - facts.keys()):
            raise FormatError(f"{path}: expected the entries {', '.join(missing)}, found none; restore the file")
        try:
            shards = tuple(ShardEntry(**shard) for shard in facts["shards"])
            manifest = cls(**{**{name: facts[name] for name in names}, "shards": shards, "taps": tuple(facts["taps"])})
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


def value_space(donor: Mapping[str, Any], taps: Sequence[int], value_dim: int) -> str:
    """What a graft is trained against: all that changes what a value means, and nothing else.

    Two donors are the same where their weights are; without a fingerprint the name stands for them. A bank that names
    no donor shares its space with others that name none, of the same taps and width.
    """
    reads = {name: value for name, value in donor.items() if name in _READS or name.startswith("context")}
    # No prefix and none recorded (banks from before prefixes say whether BOS stood in front) are the same.
    reads = {name: list(value) if isinstance(value, tuple) else value for name, value in reads.items() if value}
    counted = {"weights": donor.get("fingerprint") or donor.get("name"), "reads": reads}
    content = {"donor": counted, "taps": list(taps), "value_dim": value_dim}
    return fingerprint_bytes(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())


def _fingerprint(facts: dict[str, Any]) -> str:
    """Hash of the parsed entries of a manifest, entries of later minor versions included."""
    content = {name: value for name, value in facts.items() if name not in ("fingerprint", "tool")}
    return fingerprint_bytes(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())
