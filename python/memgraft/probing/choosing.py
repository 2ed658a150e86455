"""What a harvest is made of, chosen by a probe, once for each bank."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memgraft.bank.files import write_text
from memgraft.bank.locks import open_lock, wait_for_lock
from memgraft.errors import StorageError
from memgraft.harvesting.finished import facts_at
from memgraft.harvesting.occurrences import Contexts
from memgraft.keyset import KeySet
from memgraft.probing.run import probe

_NAME, _LOCK_NAME = "probe.json", "probe.lock"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to give to `memgraft.harvest`.

    Attributes:
        taps: one depth.
        prefix: donor tokens before every key; ``"none"`` for none.
        contexts: windows of the corpus, or None.
        probe: the table of the probe, which the bank records.
    """

    taps: tuple[int, ...]
    prefix: list[int] | str
    contexts: Contexts | None
    probe: Mapping[str, Any]

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> "Settings":
        """What a recorded table chose."""
        chosen = table["settings"]
        return cls(
            taps=(int(chosen["tap"]),),
            prefix=list(chosen["prefix"]) or "none",
            contexts=Contexts.of(chosen["contexts"]),
            probe=table,
        )


def choose_settings(keys: KeySet, out: str | Path, **options: Any) -> Settings:
    """What a probe with ``options`` (those of `probe`, for one donor and one dtype) chooses for the bank at ``out``.

    What was chosen for a bank that is there, or begun, stays chosen: another run of the probe could choose otherwise,
    and a harvest that is taken up refuses other settings. Of several processes one probes, the others wait.

    Raises:
        StorageError: the folder beside ``out`` cannot be written.
        MemgraftError: whatever `probe` refuses.
    """
    out = Path(out)
    if table := facts_at(out).get("probe"):
        return Settings.of(table)
    partial = out.with_name(out.name + ".partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{partial}: cannot be written: {error.strerror}; choose another path") from error
    lock = open_lock(partial / _LOCK_NAME)
    try:
        wait_for_lock(lock, partial / _LOCK_NAME)
        if table := facts_at(out).get("probe") or _kept(partial / _NAME):
            return Settings.of(table)
        found = probe(keys, **options)
        rows = {
            each.name: {"loss": round(each.loss, 4), "keys_per_second": each.keys_per_second}
            for each in (*found.candidates, *found.baselines)
        }
        table = {
            "chosen": found.chosen.name,
            "settings": {name: found.chosen.settings[name] for name in ("tap", "prefix", "contexts")},
            "table": rows,
            "sample": found.sample,
        }
        write_text(partial / _NAME, json.dumps(table) + "\n")
        return Settings.of(json.loads(json.dumps(table)))
    finally:
        os.close(lock)


def _kept(path: Path) -> Mapping[str, Any] | None:
    try:
        found: Mapping[str, Any] = json.loads(path.read_text())
        return found if "settings" in found else None
    except (OSError, ValueError, TypeError):
        return None  # not there, or a kill left half of it
