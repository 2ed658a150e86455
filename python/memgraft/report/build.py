"""Collect a report's facts and write both files."""

import contextlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from memgraft import __version__
from memgraft.assets.cache import write_beside
from memgraft.bank import Bank
from memgraft.bank.health import bank_health
from memgraft.report.page import render

REPORT_JSON, REPORT_HTML = "report.json", "report.html"
FORMAT_VERSION = 1

NOT_MEASURED = (
    "GPU training and harvesting: every figure here is from this machine's processor.",
    "Benchmarks beyond held-out loss, and recipients or budgets of the paper's size.",
    "Donors other than the one named above.",
)
_ONE_SEED = "The spread over seeds: this run has one, so its intervals speak about the held-out text alone."


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
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": processor,
        "cores": cores,
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
    not_measured: Sequence[str] = NOT_MEASURED,
) -> dict[str, Any]:
    """The content of ``report.json``; parts without facts are None and stay out of the page."""
    missing = list(not_measured)
    if experiment is not None and len({result["seed"] for result in experiment["arms"]}) == 1:
        missing.insert(0, _ONE_SEED)
    return {
        "format_version": FORMAT_VERSION,
        "tool": f"memgraft {__version__}",
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
        "not_measured": missing,
    }


def write_report(out: str | Path, facts: Mapping[str, Any]) -> tuple[Path, Path]:
    """Write ``report.json`` and ``report.html`` into ``out``; return their paths.

    Raises:
        StorageError: the operating system refused.
    """
    folder = Path(out)
    page = render(facts)
    write_beside(folder / REPORT_JSON, (json.dumps(facts, indent=1, default=_plain) + "\n").encode())
    write_beside(folder / REPORT_HTML, page.encode())
    return folder / REPORT_JSON, folder / REPORT_HTML


def _plain(value: Any) -> Any:
    if isinstance(value, (np.integer, np.floating)):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"cannot write {type(value).__name__} as JSON")
