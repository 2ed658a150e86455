"""Entry of ``make bench``: all groups or some, one table of ratios taken interleaved, raw results as JSON.

    make bench                                      # everything; the first time it fetches text and mines keys
    make bench BENCH="--quick"                      # a smoke run of a minute or two on a small corpus
    make bench BENCH="index gather --keys 3e6,30e6"

Every group checks that all contenders give the same answers before it times any of them; where they differ, nothing of
that group is reported and the exit code is 1.
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import prepare
import report

GROUPS = ("index", "lookup", "stack", "gather", "loader", "cold", "decode", "graft", "mining", "harvest")
MOST_KEYS_OF_PEERS = {"daachorse": 4_000_000, "map": 4_000_000, "backward": 40_000_000}
"""Beyond this many keys a peer takes too much memory or too long to build to take part."""


def machine() -> dict[str, Any]:
    """What the figures depend on; no host names, no paths."""
    model = platform.processor() or platform.machine()
    for line in _lines("/proc/cpuinfo"):
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    memory = next((line.split()[1] for line in _lines("/proc/meminfo") if line.startswith("MemTotal:")), "0")
    huge = "".join(_lines("/sys/kernel/mm/transparent_hugepage/enabled"))
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": round(int(memory) / 2**20, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "huge_pages": (re.findall(r"\[(\w+)\]", huge) or ["unknown"])[0],
        "load_before": os.getloadavg()[0],
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def commit() -> str:
    """Short hash of the checked-out commit, with ``-dirty`` where the tree differs from it."""

    def git(*words: str) -> str:
        got = subprocess.run(["git", *words], cwd=prepare.BENCHES, capture_output=True, text=True, check=False)
        return got.stdout.strip()

    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("-dirty" if git("status", "--porcelain") else "")


def run_json(command: list[str], given: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run a program that prints one JSON object; RuntimeError with its last words where it fails."""
    text = None if given is None else json.dumps(given)
    got = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if got.returncode != 0:
        words = got.stderr.strip().splitlines() or ["it said nothing"]
        raise RuntimeError(f"{Path(command[-1] if given else command[0]).name} {' '.join(command[1:2])}: {words[-1]}")
    return json.loads(got.stdout)


def index_group(ground: prepare.Ground, size: int, keys: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Build, open and lookup of one key set."""
    program, index = str(prepare.binary()), keys.with_suffix(".mgi")
    peers = [name for name, most in MOST_KEYS_OF_PEERS.items() if size <= most]
    common = ["--index", str(index), "--rounds", str(options.rounds)]
    tokens = str(1 << 18 if options.quick else 2 << 20)
    lookup = ["--keys", str(keys), "--corpus", str(ground.held_out), "--tokens", tokens, "--peers", ",".join(peers)]
    # An archive is expanded with its keys in memory beside the index.
    archive = str(size * 120 < machine()["memory_gib"] * 2**30).lower()
    return {
        "build": run_json([program, "build", "--keys", str(keys), "--index", str(index), "--archive", archive]),
        "open": run_json([program, "open", *common]),
        "lookup": run_json([program, "lookup", *common, *lookup]),
        "keys": _key_facts(keys),
    }


def _key_facts(path: Path) -> dict[str, Any]:
    metadata = prepare.KeySet.open(path).metadata
    return {"synthetic": metadata.get("synthetic", 0), "min_count": metadata.get("mining", {}).get("min_count")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", choices=[*GROUPS, []], help=f"some of {', '.join(GROUPS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="small corpus, few rounds: does it run, not how fast")
    parser.add_argument("--rounds", type=int, help="timed rounds of each contest (default 7, quick 2)")
    parser.add_argument("--keys", default="3e6,30e6", help="sizes of the key sets for the index group")
    parser.add_argument("--tokens", type=float, default=160e6, help="tokens of text to mine where none are cached yet")
    parser.add_argument("--memory", default="6GiB", help="working memory of mining")
    parser.add_argument("--scratch", help="where to put banks of a few GB (default: the system's temporary folder)")
    parser.add_argument("--out", help="results file (default: benches/results/<machine>-<commit>.json)")
    options = parser.parse_args()
    options.rounds = options.rounds or (2 if options.quick else 7)
    groups = options.groups or list(GROUPS)
    sizes = [200_000] if options.quick else [int(float(size)) for size in options.keys.split(",")]
    ground = prepare.text(quick=options.quick, tokens=options.tokens)
    paths = prepare.mined(ground, sizes, options.memory)
    facts = {**machine(), "commit": commit(), "quick": options.quick, "text": ground.facts, "rounds": options.rounds}
    results: dict[str, Any] = {}
    failed: list[str] = []
    out = Path(options.out) if options.out else results_path(facts)
    out.parent.mkdir(parents=True, exist_ok=True)

    def attempt(name: str, work: Any) -> None:
        prepare.say(f"{time.strftime('%H:%M:%S')} {name}")
        try:
            results[name] = work()
        except RuntimeError as error:
            failed.append(name)
            prepare.say(f"{name}: NOT REPORTED: {error}")
        # After every group, so that a run that is stopped leaves what it has measured.
        listed = [{**vars(goal), "met": goal.met} for goal in ([] if options.quick else report.goals(results))]
        out.write_text(json.dumps({"machine": facts, "results": results, "goals": listed, "failed": failed}, indent=1))

    for size in sizes if "index" in groups else []:
        name = f"index-{size // 1_000_000}M" if size >= 1_000_000 else f"index-{size // 1000}k"
        attempt(name, lambda size=size: index_group(ground, size, paths[size], options))
    python = [name for name in groups if name != "index"]
    if python:
        smallest = paths[min(sizes)]
        index = smallest.with_suffix(".mgi")
        if not index.is_file():
            run_json([str(prepare.binary()), "build", "--keys", str(smallest), "--index", str(index)])
        given = {
            "corpus": str(ground.held_out),
            "keys": str(smallest),
            "index": str(index),
            "binary": str(prepare.binary()),
            "rounds": options.rounds,
            "quick": options.quick,
        }
        for name in python:
            with tempfile.TemporaryDirectory(prefix="memgraft-bench-", dir=options.scratch) as scratch:
                script = str(prepare.BENCHES / "python" / f"{name}.py")
                attempt(name, lambda: run_json([sys.executable, script], {**given, "scratch": scratch}))  # noqa: B023
    report.show(results, print, judge=not options.quick)
    print(f"\nraw results: {out}")
    if failed:
        print(f"not reported, for wrong answers or errors: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def results_path(facts: dict[str, Any]) -> Path:
    words = re.sub(r"[^a-z0-9]+", "-", f"{facts['cpu']} {facts['cores']} cores".lower()).strip("-")
    return prepare.BENCHES / "results" / f"{words}-{facts['commit']}{'-quick' if facts['quick'] else ''}.json"


if __name__ == "__main__":
    if shutil.which("cargo") is None:
        raise SystemExit(
            "the benches need Rust: expected 'cargo' on PATH, found none; install it from https://rustup.rs"
        )
    raise SystemExit(main())
