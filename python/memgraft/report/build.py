"""Collect a report's facts and write both files."""

import contextlib
import json
import platform
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from memgraft.bank import Bank
from memgraft.bank.health import bank_health, whole_health
from memgraft.names import TOOL
from memgraft.plain import plain
from memgraft.report.commands import commands_of
from memgraft.report.markdown import markdown
from memgraft.report.page import render
from memgraft.report.verdict import not_run_yet
from memgraft.system import num_threads, write_beside

REPORT_JSON, REPORT_HTML, REPORT_MARKDOWN = "report.json", "report.html", "report.md"
FORMAT_VERSION = 1


def not_measured(experiment: Mapping[str, Any] | None, coverage: Mapping[str, Any] | None) -> list[str]:
    """What a report with these parts does not show, each sentence true of them."""
    if experiment is None:
        missing = ["Training: no experiment is part of this report."]
    else:
        results = experiment["arms"]
        devices = sorted({result.get("device") or "unknown" for result in results})
        missing = [f"Training on other devices than: {', '.join(devices)}."]
        seeds = {result["seed"] for result in results}
        if len(seeds) == 1:
            missing.insert(0, "The spread over seeds: this run has one, so its intervals are over held-out windows.")
        if absent := experiment.get("arms_not_run"):
            missing.append(f"These arms: {', '.join(absent)}.")
        if waiting := not_run_yet(experiment):
            missing.insert(0, f"Not run yet: {waiting}; the same call trains them.")
        missing.append("Benchmarks other than held-out loss.")
    if not coverage:
        missing.append("Coverage: no corpus was given.")
    return missing


def provenance(bank: Bank, experiment: Mapping[str, Any] | None, commands: Sequence[str] = ()) -> dict[str, str]:
    """Corpus, tokenizer, keys, donor, recipe, seeds and commands, as far as the artifacts record them."""
    keys, manifest = bank.keys.metadata, bank.manifest
    donor, corpus, mining = manifest.donor, keys.get("corpus") or {}, keys.get("mining") or {}
    facts: dict[str, Any] = {
        "corpus of the keys": corpus.get("fingerprint"),
        "its split": _said(keys.get("split")),
        "mining": _said({name: value for name, value in mining.items() if not isinstance(value, Mapping)}),
        "tokenizer": manifest.tokenizer.get("file_fingerprint") or manifest.tokenizer.get("fingerprint"),
        "keys": bank.keys.fingerprint,
        "bank": bank.fingerprint,
        "donor": _said(
            {name: donor.get(name) for name in ("name", "fingerprint", "compute_dtype", "prefix_name", "prefix")}
        ),
    }
    if experiment is not None:
        settings = experiment["settings"]
        facts |= {
            "training corpus": settings.get("train"),
            "held-out corpus": settings.get("held_out"),
            "recipe": _said(settings.get("recipe")),
            "steps per arm": experiment.get("plan", {}).get("steps"),
            "seeds": ", ".join(map(str, settings.get("seeds", ()))),
            "trained on": ", ".join(sorted({result.get("device") or "unknown" for result in experiment["arms"]})),
        }
    trained = [] if experiment is None or not experiment.get("command") else [experiment["command"]]
    facts["commands"] = "; ".join([*commands_of(bank), *trained, *commands]) or None
    return {name: "unknown" if value in (None, "") else str(value) for name, value in facts.items()}


def _said(facts: Mapping[str, Any] | None) -> str | None:
    return ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None) if facts else None


def bank_facts(bank: Bank, *, keys_per_second: float | None = None) -> dict[str, Any]:
    """What a report says about a bank."""
    manifest = bank.manifest
    return {
        "fingerprint": bank.fingerprint,
        "num_rows": bank.num_rows,
        "rows_by_order": {str(order): count for order, count in sorted(bank.keys.num_keys_by_order.items())},
        "taps": list(bank.taps),
        "value_dim": bank.value_dim,
        "dtype": manifest.dtype,
        "bytes_per_row": bank.bytes_per_row,
        "value_bytes": bank.bytes_per_row * bank.num_rows,
        "dropped": dict(manifest.dropped),
        "donor": {name: value for name, value in manifest.donor.items() if name != "rows_by_donor_length"},
        "rows": bank_health(bank),
        "all_rows": whole_health(bank),
        "keys_per_second": keys_per_second,
    }


def machine_facts() -> dict[str, Any]:
    """Processor, cores, system and the versions that figures depend on."""
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        processor = names[0].partition(":")[2].strip() if names else processor
    versions = {}
    for package in ("torch", "transformers"):
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "processor": processor,
        "cores": num_threads(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        **versions,
    }


def build_facts(
    *,
    bank: Mapping[str, Any] | None = None,
    coverage: Mapping[str, Mapping[str, Any]] | None = None,
    experiment: Mapping[str, Any] | None = None,
    gates: Mapping[str, Any] | None = None,
    sample: Mapping[str, Any] | None = None,
    material: Mapping[str, Any] | None = None,
    seconds: Mapping[str, float] | None = None,
    title: str = "memgraft report",
    subtitle: str = "",
) -> dict[str, Any]:
    """The content of ``report.json``; parts without facts are None and stay out of the page."""
    return {
        "format_version": FORMAT_VERSION,
        "tool": TOOL,
        "created": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "title": title,
        "subtitle": subtitle,
        "machine": machine_facts(),
        "bank": bank,
        "coverage": coverage,
        "experiment": experiment,
        "gates": gates,
        "sample": sample,
        "material": material or {},
        "seconds": dict(seconds or {}),
        "not_measured": not_measured(experiment, coverage),
    }


def write_report(out: str | Path, facts: Mapping[str, Any]) -> tuple[Path, Path]:
    """Writes ``report.json``, ``report.html`` and ``report.md`` into ``out``; returns the paths of the first two.

    Raises:
        StorageError: the operating system refused.
    """
    folder = Path(out)
    page = render(facts)
    write_beside(folder / REPORT_JSON, (json.dumps(facts, indent=1, default=plain) + "\n").encode())
    write_beside(folder / REPORT_HTML, page.encode())
    write_beside(folder / REPORT_MARKDOWN, markdown(page).encode())
    return folder / REPORT_JSON, folder / REPORT_HTML
