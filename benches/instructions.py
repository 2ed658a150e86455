"""Instructions per token of the lookup, counted by callgrind: the same number on every run of one build.

    python benches/instructions.py [--keys FILE --corpus STEM] [--tokens N]

Two runs of different length cancel what opening and reading cost. By default it runs over the small corpus of
``make bench BENCH=--quick``. Needs valgrind (Linux).
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import prepare

WAYS = {
    "16 lanes": ["--lanes", "16"],
    "32 lanes": ["--lanes", "32"],
    "8 lanes": ["--lanes", "8"],
    "scalar": ["--lanes", "1", "--prefetch", "false"],
}


def count(program: Path, arguments: list[str], repeat: int) -> tuple[int, int]:
    """Instructions of one run, and the tokens it read."""
    with tempfile.TemporaryDirectory() as folder:
        tool = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out"]
        command = [*tool, str(program), "walk", *arguments, "--repeat", str(repeat)]
        got = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"Collected\s*:\s*(\d+)", got.stderr)
    if got.returncode != 0 or found is None:
        raise SystemExit(f"callgrind failed: {(got.stderr.strip().splitlines() or ['no output'])[-1]}")
    return int(found[1]), int(json.loads(got.stdout)["tokens"])


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
    common = ["--index", str(index), "--corpus", str(options.corpus), "--tokens", str(options.tokens)]
    report = {}
    for name, way in WAYS.items():
        once, tokens = count(program, common + way, 1)
        thrice, _ = count(program, common + way, 3)
        report[name] = (thrice - once) / (2 * tokens)
        print(f"{name:<10} {report[name]:8.2f} instructions a token", file=sys.stderr)
    json.dump({"unit": "instructions a token", "tokens": options.tokens, "ways": report}, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
