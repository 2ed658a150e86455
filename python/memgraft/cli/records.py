"""What ``inspect`` and ``verify`` know of saved grafts and experiments."""

import json
from pathlib import Path
from typing import Any

from memgraft.errors import FormatError


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        FormatError: it is missing or no JSON object.
    """
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FormatError(f"{path}: expected a JSON object, found: {error}") from None
    if not isinstance(facts, dict):
        raise FormatError(f"{path}: expected a JSON object, found {type(facts).__name__}")
    return facts


def graft_facts(folder: Path) -> dict[str, Any]:
    """The facts of a saved graft, from its ``graft.json``."""
    facts = read_json(folder / "graft.json")
    return {name: value for name, value in facts.items() if name != "format_version"}


def experiment_facts(folder: Path) -> dict[str, Any]:
    """Settings of an experiment and which arms of which seeds are finished, with their held-out losses."""
    plan = read_json(folder / "plan.json")
    facts: dict[str, Any] = {"steps": plan.get("steps"), "settings": plan.get("settings") or {}}
    for result in finished(folder):
        facts[f"{result['arm']} seed {result['seed']}"] = result["held_out"]["overall"]
    unfinished = sorted(
        mark.parent.name for mark in folder.glob("*-seed*/settings.json") if not mark.with_name("result.json").exists()
    )
    return {**facts, "unfinished": unfinished}


def finished(folder: Path) -> list[dict[str, Any]]:
    """Results of the finished arms.

    Raises:
        FormatError: one is not what an arm leaves.
    """
    found = []
    for path in sorted(folder.glob("*-seed*/result.json")):
        result = read_json(path)
        held_out = result.get("held_out")
        if not {"arm", "seed"} <= set(result) or not isinstance(held_out, dict) or "overall" not in held_out:
            raise FormatError(f"{path}: expected the result of an arm, found keys {sorted(result)[:8]}")
        found.append(result)
    return found


def verify_record(folder: Path, kind: str) -> str:
    """Reads every file of a saved graft or an experiment and returns its bank's fingerprint.

    Neither holds checksums: what is checked is that each file is whole and of its format.

    Raises:
        FormatError: one is not.
    """
    if kind == "graft":
        from safetensors import SafetensorError, safe_open

        path = folder / "graft.safetensors"
        try:
            with safe_open(path, framework="numpy") as tensors:
                names = list(tensors.keys())
        except (OSError, SafetensorError) as error:
            raise FormatError(f"{path}: expected the weights of a graft, found: {error}") from None
        if not names:
            raise FormatError(f"{path}: expected the weights of a graft, found none")
        bank = graft_facts(folder).get("bank")
        return str(bank.get("fingerprint") if isinstance(bank, dict) else bank)
    finished(folder)
    if (folder / "results.json").exists():
        read_json(folder / "results.json")
    return str((read_json(folder / "plan.json").get("settings") or {}).get("bank"))
