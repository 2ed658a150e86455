"""One job of the study on a machine with a GPU and nothing else: `memgraft` on the path, packed material, no network.

    PYTHONPATH=SITE python3 docs/study/gpu/run.py main  --out OUT --seconds 300 --processes 8
    PYTHONPATH=SITE python3 docs/study/gpu/run.py large --out OUT --seconds 560
    PYTHONPATH=SITE python3 docs/study/gpu/run.py prefix --out OUT --seconds 300 --steps 400

Reads the same configs as `memgraft compare`. Every finished arm is in OUT/JOB.json at once. After --seconds the job is
ended; the same command goes on from the finished arms and the last checkpoints, as long as the disk is the same one.
--tiny shrinks steps and evaluation, to try the whole way on a CPU.
"""

import argparse
import io
import json
import lzma
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
CONFIGS = {"main": HERE.parent / "config-main.yaml", "large": HERE.parent / "large" / "config.yaml"}
MATERIAL = {
    "main": ROOT / "quickstart",
    "large": HERE.parent / "large" / "material",
    "prefix": ROOT / "quickstart" / "prefix",
}
TINY = {"held_out_windows": 4, "curve_windows": 2, "curve_points": 2}
POLL = 2.0


def say(line: str) -> None:
    """One line, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def unpack(pieces: Path, material: Path) -> None:
    """Join the pieces and lay out what is in them, unless the bank is there."""
    found = sorted(pieces.glob("*.part"))
    mark = material / ".unpacked"
    if mark.exists() or not found:
        return
    material.mkdir(parents=True, exist_ok=True)
    joined = io.BytesIO(b"".join(part.read_bytes() for part in found))
    with lzma.open(joined) as packed, tarfile.open(fileobj=packed, mode="r|") as tar:  # type: ignore[call-overload]
        tar.extractall(material, filter="data")
    mark.touch()


def work(options: argparse.Namespace) -> None:
    """Train, in this process and those that it starts."""
    import dataclasses

    from memgraft.experiments import read_comparison

    if options.job == "prefix":
        command = [sys.executable, str(HERE.parent / "prefix" / "run.py"), str(MATERIAL["prefix"])]
        waiting = [
            subprocess.Popen([*command, "--steps", str(options.steps or 120), "--seeds", seed])
            for seed in (("0",) if options.tiny else ("0", "1", "2"))
        ]
        sys.exit(max(process.wait() for process in waiting))
    comparison = read_comparison(CONFIGS[options.job])
    changes: dict[str, Any] = {}
    if options.steps:
        changes["steps"] = options.steps
    if options.arms:
        changes["arms"] = tuple(options.arms.split(","))
    if options.seeds:
        changes["seeds"] = tuple(map(int, options.seeds.split(",")))
    if options.tiny:
        changes["recipe"] = dataclasses.replace(comparison.recipe, **TINY)
        changes["out"] = comparison.out.with_name(comparison.out.name + "-tiny")
    comparison = dataclasses.replace(comparison, **changes)
    began = time.monotonic()

    def report(phase: str, done: int, total: int) -> None:
        if done == total or phase.startswith("train arms"):
            say(f"{time.monotonic() - began:7.1f} s  {phase} {done}/{total}")

    comparison.run(processes=options.processes, seconds=options.seconds, progress=report)


def experiment_folder(options: argparse.Namespace) -> Path:
    """Where the comparison of this job keeps its arms."""
    import yaml  # type: ignore[import-untyped]

    config = CONFIGS[options.job]
    out: Path = config.parent / yaml.safe_load(config.read_text())["out"]
    return out.with_name(out.name + "-tiny") if options.tiny else out


def results(options: argparse.Namespace) -> Iterator[Any]:
    """What is finished so far, read from where the job leaves it."""
    if options.job == "prefix":
        paths = sorted(MATERIAL["prefix"].glob(f"results-{options.steps or 120}-*.json"))
    else:
        paths = sorted(experiment_folder(options).glob("*-seed*/result.json"))
    for path in paths:
        yield json.loads(path.read_text())


def save(options: argparse.Namespace) -> int:
    """Write what is finished to OUT/JOB.json, the comparison too once there is one; the number of results."""
    found = list(results(options))
    facts: dict[str, Any] = {"job": options.job, "results": found}
    if options.job != "prefix" and (comparison := experiment_folder(options) / "results.json").exists():
        facts["comparison"] = json.loads(comparison.read_text())
    path = options.out / f"{options.job}.json"
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(facts) + "\n")
    beside.replace(path)
    return len(found)


def main() -> None:
    """Start the work in a process of its own, copy results as they come, end it in time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=tuple(MATERIAL))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=540.0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--pieces", type=Path, help="folder of the packed pieces; default .gpu/JOB")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--arms")
    parser.add_argument("--seeds")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options)
        return
    began = time.monotonic()
    options.out.mkdir(parents=True, exist_ok=True)
    unpack(options.pieces or ROOT / ".gpu" / options.job, MATERIAL[options.job])
    say(f"{time.monotonic() - began:7.1f} s  material in {MATERIAL[options.job]}")
    child = subprocess.Popen(
        [sys.executable, __file__, *sys.argv[1:], "--worker"],
        start_new_session=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
    )
    seen = -1
    while child.poll() is None and time.monotonic() - began < options.seconds:
        time.sleep(POLL)
        if sum(1 for _ in results(options)) != seen:
            seen = save(options)
    if child.poll() is None:
        say(f"{time.monotonic() - began:7.1f} s  time is over; ended")
        os.killpg(child.pid, signal.SIGTERM)
        time.sleep(POLL)
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
    code = child.wait()
    say(f"{time.monotonic() - began:7.1f} s  {save(options)} results in {options.out}, exit {code}")
    sys.exit(0 if code in (0, -signal.SIGTERM, -signal.SIGKILL) else 1)


if __name__ == "__main__":
    main()
