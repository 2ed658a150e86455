"""Instructions per token of lookups and per row of the gather, counted by callgrind: the same on every run.

    python benches/instructions.py [--keys FILE --corpus STEM] [--tokens N]

By default it runs over the small corpus of
``make bench BENCH=--quick``. Needs valgrind (Linux).
"""

import argparse
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import prepare
from memgraft import KeySet, NgramIndex

WAYS = {
    "16 lanes": ["--lanes", "16"],
    "32 lanes": ["--lanes", "32"],
    "8 lanes": ["--lanes", "8"],
    "scalar": ["--lanes", "1", "--prefetch", "false"],
}
GATHERS = {
    "gather": [],
    "gather, resident": ["--resident", "true"],
    "stage": ["--stage", "true"],
}


def count(program: Path, command_words: list[str], of: str, repeat: int) -> tuple[int, int]:
    """Instructions of one run, and the tokens or rows (``of``) it read."""
    with tempfile.TemporaryDirectory() as folder:
        tool = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out"]
        command = [*tool, str(program), *command_words, "--repeat", str(repeat)]
        got = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"Collected\s*:\s*(\d+)", got.stderr)
    if got.returncode != 0 or found is None:
        raise SystemExit(f"callgrind failed: {(got.stderr.strip().splitlines() or ['no output'])[-1]}")
    return int(found[1]), int(json.loads(got.stdout)[of])


def each(program: Path, command_words: list[str], of: str) -> float:
    """Instructions for each token or row; two runs of different length cancel what opening costs."""
    once, number = count(program, command_words, of, 1)
    thrice, _ = count(program, command_words, of, 3)
    return (thrice - once) / (2 * number)


def stacks(program: Path, keys: KeySet, corpus: list[str]) -> dict[str, float]:
    """Instructions a token of a base alone and with an overlay of 1 % of its size, by which keys the overlay has.

    The overlay's keys are read in the first run already, so they cancel out too.
    """
    few = len(keys) // 100
    overlays = {"the next by count": np.arange(len(keys) - few, len(keys)), "the most frequent": np.arange(few)}
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        base, overlay = f"{folder}/base.mgi", f"{folder}/overlay.mgi"
        for name, rows in overlays.items():
            NgramIndex.build(keys.select(np.setdiff1d(np.arange(len(keys)), rows))).save(base)
            NgramIndex.build(keys.select(rows)).save(overlay)
            for what, more in (("base alone", []), ("stack", ["--overlay", overlay])):
                words = f"{what}, overlay of {name}"
                found[words] = each(program, ["walk", "--index", base, *corpus, *more], "tokens")
                print(f"{words:<40} {found[words]:8.2f} instructions a token", file=sys.stderr)
    return found


def shard(path: Path, num_rows: int, value_dim: int) -> None:
    """A value shard of bf16 rows with any bytes."""
    num_bytes = num_rows * value_dim * 2
    entry = {"dtype": "BF16", "shape": [num_rows, 1, value_dim], "data_offsets": [0, num_bytes]}
    header = json.dumps({"values": entry}).encode().ljust(4088)
    path.write_bytes(len(header).to_bytes(8, "little") + header + random.Random(0).randbytes(num_bytes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=Path, help="key set (default: 200,000 keys of the small corpus)")
    parser.add_argument("--corpus", type=Path, help="stem of the tokens to look up")
    parser.add_argument("--tokens", type=int, default=1 << 16)
    options = parser.parse_args()
    if shutil.which("valgrind") is None:
        raise SystemExit("expected 'valgrind' on PATH, found none; install it with the system's package manager")
    if options.keys is None or options.corpus is None:
        ground = prepare.text(quick=True, tokens=0)
        options.keys = prepare.mined(ground, [200_000], "1GiB")[200_000]
        options.corpus = ground.held_out
    program, index = prepare.binary(), options.keys.with_suffix(".mgi")
    subprocess.run([program, "build", "--keys", options.keys, "--index", index], check=True, stdout=subprocess.DEVNULL)
    corpus = ["--corpus", str(options.corpus), "--tokens", str(options.tokens)]
    common = ["--index", str(index), *corpus]
    report, gathers = {}, {}
    for name, way in WAYS.items():
        report[name] = each(program, ["walk", *common, *way], "tokens")
        print(f"{name:<18} {report[name]:8.2f} instructions a token", file=sys.stderr)
    stacked = stacks(program, KeySet.open(options.keys), corpus)
    with tempfile.TemporaryDirectory() as folder:
        shard(Path(folder) / "values", num_rows=20_000, value_dim=512)
        for name, way in GATHERS.items():
            words = ["gather", "--shard", f"{folder}/values", "--asked", str(1 << 14), *way]
            gathers[name] = each(program, words, "rows")
            print(f"{name:<18} {gathers[name]:8.2f} instructions a row", file=sys.stderr)
    found = {
        "unit": "instructions a token, a row",
        "tokens": options.tokens,
        "ways": report,
        "stacks": stacked,
        "gathers": gathers,
    }
    json.dump(found, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
