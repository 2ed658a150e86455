"""What ``inspect`` and ``verify`` know of saved grafts, experiments, annotations and run files."""

import json
from pathlib import Path
from typing import Any

from memgraft.errors import FormatError

RECORDS = ("graft", "experiment", "annotation", "part")
"""Kinds that are neither a corpus nor something with keys."""


def record_facts(path: Path, kind: str) -> dict[str, Any]:
    """The facts of a record of ``kind``."""
    read = {
        "graft": graft_facts,
        "experiment": experiment_facts,
        "annotation": annotation_facts,
        "part": part_facts,
    }
    return read[kind](path)


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


def graft_of(path: Path) -> Path | None:
    """The graft folder that ``path`` is or, as what `memgraft train` keeps, holds; or None."""
    return next((folder for folder in (path, path / "graft") if (folder / "graft.json").is_file()), None)


def graft_facts(path: Path) -> dict[str, Any]:
    """The facts of a saved graft, from its ``graft.json``."""
    facts = read_json((graft_of(path) or path) / "graft.json")
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


def part_facts(path: Path) -> dict[str, Any]:
    """The facts of a run file."""
    from memgraft.mining import RunSet

    facts: dict[str, Any] = {**RunSet.open(path).facts}
    shards, settings = facts.pop("shards"), facts.pop("settings")
    return {
        **facts,
        **settings,
        "ranks": [shard["rank"] for shard in shards],
        "num_tokens": sum(shard["num_tokens"] for shard in shards),
        "num_documents": sum(shard["num_documents"] for shard in shards),
        "shards": [shard["fingerprint"] for shard in shards],
    }


def annotation_facts(folder: Path) -> dict[str, Any]:
    """The facts of an annotation, from its ``annotation.json``."""
    facts = read_json(folder / "annotation.json")
    missing = [name for name in ("bank", "corpus", "num_tokens", "num_hits", "max_order") if name not in facts]
    if missing:
        raise FormatError(f"{folder / 'annotation.json'}: expected the facts of an annotation, found no {missing[0]}")
    facts["coverage"] = facts["num_hits"] / max(1, facts["num_tokens"])
    return {name: value for name, value in facts.items() if name != "format_version"}


def verify_annotation(folder: Path) -> str:
    """Reads all rows and orders of an annotation; returns its bank's fingerprint.

    Raises:
        FormatError: a file is damaged, or rows, orders and hits do not fit together.
    """
    import numpy as np

    facts = annotation_facts(folder)
    arrays = {}
    for name, dtype in (("rows.npy", "<i4"), ("orders.npy", "|u1")):
        try:
            arrays[name] = np.load(folder / name, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise FormatError(f"{folder / name}: damaged or missing: {error}; annotate again") from None
        found = arrays[name]
        if found.dtype.str != dtype or found.shape != (facts["num_tokens"],):
            raise FormatError(
                f"{folder / name}: expected {dtype} ({facts['num_tokens']},), found {found.dtype.str} {found.shape}"
            )
    hits, step = 0, 1 << 22
    for start in range(0, facts["num_tokens"], step):
        rows, orders = (arrays[name][start : start + step] for name in ("rows.npy", "orders.npy"))
        strange = np.flatnonzero(((rows < 0) != (orders == 0)) | (rows < -1) | (orders > facts["max_order"]))
        if len(strange):
            place = int(strange[0])
            raise FormatError(
                f"{folder}: damaged: position {start + place} has row {rows[place]} and order {orders[place]}; "
                "annotate again"
            )
        hits += int((rows >= 0).sum())
    if hits != facts["num_hits"]:
        raise FormatError(f"{folder}: expected {facts['num_hits']} positions with a row, found {hits}; annotate again")
    return str(facts["bank"])


def verify_part(path: Path) -> str:
    """Checks every byte of a run file; returns the fingerprints of its shards."""
    from memgraft.mining import RunSet

    part = RunSet.open(path)
    part.verify()
    return ", ".join(shard["fingerprint"] for shard in part.facts["shards"])


def verify_record(folder: Path, kind: str) -> str:
    """Reads every file of a record and returns the fingerprint of its bank, or of a run file's documents.

    But for run files none holds checksums: what is checked is that each file is whole and of its format.

    Raises:
        FormatError: one is not.
    """
    if kind == "annotation":
        return verify_annotation(folder)
    if kind == "part":
        return verify_part(folder)
    if kind == "graft":
        from safetensors import SafetensorError, safe_open

        path = (graft_of(folder) or folder) / "graft.safetensors"
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
