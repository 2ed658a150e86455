"""Phases that are done once: a phase runs again exactly when the fingerprint of its inputs changes.

``stages.json`` keeps, for each phase, the fingerprint of its inputs and what it found. A phase that was interrupted
keeps what it wrote if its inputs are still the same, so that a phase which resumes by itself (harvest, train) can;
when they changed, its old outputs go first.
"""

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from memgraft import __version__
from memgraft.system import write_beside

STATE_NAME = "stages.json"
"""The file's name, and the key `stage` in what it hashes, are older than the word phase: existing outputs keep both."""


class Phases:
    """The phases of one output directory.

    Args:
        folder: where outputs and ``stages.json`` live.
        log: told one line per phase.
    """

    def __init__(self, folder: Path, log: Callable[[str], None]) -> None:
        self.folder = folder
        self.log = log
        self.seconds: dict[str, float] = {}
        self._path = folder / STATE_NAME
        self._state: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            self._state = json.loads(self._path.read_text())

    def run(
        self,
        name: str,
        inputs: Mapping[str, Any],
        outputs: Sequence[str],
        work: Callable[[], dict[str, Any]],
        *,
        partial: Sequence[str] = (),
    ) -> dict[str, Any]:
        """The phase's facts: from the last time if nothing changed, else by ``work``.

        Args:
            name: the phase.
            inputs: JSON-ready values that decide the result: fingerprints and options.
            outputs: files and directories it makes, relative to the folder; gone ones make it run again.
            work: does the phase; returns JSON-ready facts, the fingerprint of its output among them.
            partial: what an interrupted run leaves besides ``outputs``.
        """
        described = json.dumps({"stage": name, "inputs": inputs, "version": __version__}, sort_keys=True)
        fingerprint = hashlib.sha256(described.encode()).hexdigest()
        entry = self._state.get(name, {})
        same = entry.get("inputs") == fingerprint
        facts: dict[str, Any]
        if same and entry.get("done") and all((self.folder / output).exists() for output in outputs):
            self.seconds[name] = entry["seconds"]
            self.log(f"{name}: up to date")
            facts = entry["facts"]
            return facts
        if not same:
            for output in (*outputs, *partial):
                _remove(self.folder / output)
        self._state[name] = {"inputs": fingerprint, "done": False}
        self._save()
        started = time.perf_counter()
        facts = json.loads(json.dumps(work()))
        self.seconds[name] = round(time.perf_counter() - started, 2)
        self._state[name] = {"inputs": fingerprint, "done": True, "seconds": self.seconds[name], "facts": facts}
        self._save()
        self.log(f"{name}: done in {self.seconds[name]:.1f} s")
        return facts

    def _save(self) -> None:
        write_beside(self._path, (json.dumps(self._state, indent=1) + "\n").encode())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
