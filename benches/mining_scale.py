"""Mining at several sizes, in parts, and beside DuckDB and Polars counting the same n-grams; one command.

    python benches/mining_scale.py                                        # about ten minutes on two cores
    python benches/mining_scale.py --sizes 30M,100M,300M,1G --engines 30M --parts 100M --rounds 3
    python benches/mining_scale.py --sizes 0 --parts 0 --engines 300M --engine-names duckdb --temporary /large/disk
    python benches/mining_scale.py --quick                                # does it run, not how fast

Every measurement is a process of its own, so that its peak memory is its own, and contenders of one question run in
turn within one round. Sizes beyond the real text are completed with documents of it whose ids are permuted, another way
in each repetition: hardly an n-gram of theirs is one of the text, so such a corpus has more distinct n-grams than text.
"""

import argparse
import importlib.util
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import memgraft
import mining_engines
import prepare
import run
from memgraft.cli.sizes import parse_count, parse_range
from memgraft.corpus import CorpusWriter
from memgraft.mining import RunSet, merge_parts, mine_part, parse_bytes, select_parts

PIECE = 1 << 24
"""Tokens copied at a time."""


def corpus_of(ground: prepare.Ground, size: int, folder: Path) -> dict[str, Any]:
    """Writes a corpus of about ``size`` tokens; returns its path and how many are synthetic."""
    real = memgraft.Corpus.open(ground.tokens.with_suffix(".bin"), eos_id=ground.facts["eos_id"])
    starts = np.append(real.document_starts, real.num_tokens).astype(np.int64)
    vocab_size, eos_id = ground.facts["vocab_size"], ground.facts["eos_id"]
    written, turn = 0, 0
    with CorpusWriter(folder / f"corpus-{size}", vocab_size=vocab_size, eos_id=eos_id) as writer:
        while written < size:
            ids = np.arange(vocab_size, dtype=np.uint32)
            if turn:
                others = np.delete(np.arange(vocab_size, dtype=np.uint32), eos_id)
                ids[others] = np.random.default_rng(turn).permutation(others)
            first = 0
            while first < len(starts) - 1 and written < size:
                most = min(starts[first] + min(PIECE, size - written), starts[-1])
                last = max(int(np.searchsorted(starts, most, side="right")) - 1, first + 1)
                writer.add_many(
                    ids[real.tokens(int(starts[first]), int(starts[last]))], np.diff(starts[first : last + 1])
                )
                written += int(starts[last] - starts[first])
                first = last
            turn += 1
        path = writer.finish()
    return {"path": str(path), "num_tokens": written, "synthetic": max(written - real.num_tokens, 0)}


def child(given: dict[str, Any]) -> dict[str, Any]:
    """One measurement, in a process of its own."""
    import resource

    work = given.pop("work")
    began, used = time.monotonic(), time.process_time()
    facts = WORK[work](**given)
    ended, used = time.monotonic(), time.process_time() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    times = {"began": began, "ended": ended, "seconds": ended - began, "processor_seconds": used}
    return {**times, "peak_bytes": peak, **(facts or {})}


def mine(
    path: str, orders: list[int], budget: int, memory: str, threads: int, scratch: str, **more: Any
) -> dict[str, Any]:
    corpus = memgraft.Corpus.open(path)
    options = {"memory": memory, "threads": threads, "temporary": scratch, "sample": False, **more}
    keys = memgraft.mine(corpus, orders, budget, **options)
    mining = keys.metadata["mining"]
    return {"fingerprint": keys.fingerprint, "frequent": mining["frequent"], "distinct": mining["distinct"]}


def part(path: str, out: str, orders: list[int], memory: str, threads: int, rank: int, world: int) -> dict[str, Any]:
    made = mine_part(memgraft.Corpus.open(path), out, orders, rank=rank, world=world, memory=memory, threads=threads)
    return {"records": made.facts["num_records"], "bytes": made.facts["num_bytes"]}


def merge(parts: list[str], out: str, memory: str) -> dict[str, Any]:
    records = sum(RunSet.open(path).facts["num_records"] for path in parts)
    merge_parts(parts, out, memory=memory, threads=1)
    return {"records": records}


def select(parts: list[str], budget: int, memory: str, threads: int, scratch: str) -> dict[str, Any]:
    records = sum(RunSet.open(path).facts["num_records"] for path in parts)
    keys = select_parts(parts, budget=budget, memory=memory, threads=threads, temporary=scratch)
    return {"records": records, "fingerprint": keys.fingerprint}


WORK: dict[str, Callable[..., Any]] = {
    "mine": mine, "part": part, "merge": merge, "select": select, "engine": mining_engines.count,
}  # fmt: skip


def counts(name: str, sizes: str) -> list[int]:
    """What ``--name`` asks for."""
    return [parse_count(name, size) for size in sizes.split(",") if size != "0"]


def clear(folder: Path) -> None:
    """Removes the files of one question, so that disk for the largest is all that a run takes."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def start(given: dict[str, Any]) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--child", json.dumps(given)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str], limit: int | None = None) -> dict[str, Any]:
    """What a measurement says; one that takes more than ``limit`` bytes is stopped, and that is its result."""
    taken = 0
    while limit is not None and process.poll() is None and taken <= limit:
        time.sleep(0.05)
        taken = max(taken, resident(process.pid))
    if limit is not None and taken > limit:
        process.kill()
    said, _ = process.communicate()
    # Stopped here or by the system, or ended by itself where it got no more.
    if limit is not None and process.returncode in (-signal.SIGKILL, -signal.SIGABRT):
        return {"out_of_memory": limit}
    if process.returncode != 0:
        raise SystemExit(f"a measurement failed with exit code {process.returncode}; its message is above")
    facts: dict[str, Any] = json.loads(said)
    return facts


def resident(pid: int) -> int:
    """Bytes of memory that a process has; none where it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(("RssAnon:", "VmSwap:")))


def measure(work: str, **given: Any) -> dict[str, Any]:
    return finish(start({"work": work, **given}))


def linear(corpora: list[dict[str, Any]], options: argparse.Namespace, scratch: str) -> list[dict[str, Any]]:
    """Cost by size, on one thread and on all."""
    found = []
    for corpus in corpora:
        prepare.say(f"{time.strftime('%H:%M:%S')} mine {corpus['num_tokens']:,} tokens")
        entry = {name: corpus[name] for name in ("num_tokens", "synthetic")}
        given = {"path": corpus["path"], "orders": options.orders, "budget": options.budget, "memory": options.memory}
        for threads in sorted({1, os.cpu_count() or 1}):
            facts = measure("mine", threads=threads, scratch=scratch, **given)
            rate = corpus["num_tokens"] / facts["seconds"]
            entry[f"threads_{threads}"] = {**facts, "tokens_per_second": rate, "per_core": rate / threads}
        found.append(entry)
    return found


def in_parts(corpus: dict[str, Any], options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Two processes beside one thread; then their merge and the selection."""
    ratios, merges, processor, selects = [], [], [], []
    for turn in range(options.rounds):
        prepare.say(f"{time.strftime('%H:%M:%S')} parts, round {turn + 1}")
        given = {"path": corpus["path"], "orders": options.orders, "memory": options.memory, "threads": 1}
        one = measure("part", out=str(folder / f"one-{turn}.mgr"), rank=0, world=1, **given)
        outs = [str(folder / f"part-{turn}-{rank}.mgr") for rank in range(2)]
        running = [
            start({"work": "part", "out": out, "rank": rank, "world": 2, **given}) for rank, out in enumerate(outs)
        ]
        two = [finish(process) for process in running]
        ratios.append(one["seconds"] / (max(each["ended"] for each in two) - min(each["began"] for each in two)))
        joined = measure("merge", parts=outs, out=str(folder / f"merged-{turn}.mgr"), memory=options.memory)
        merges.append(joined["records"] / joined["seconds"])
        processor.append(joined["records"] / joined["processor_seconds"])
        chosen = measure(
            "select", parts=outs, budget=options.budget, memory=options.memory, threads=1, scratch=str(folder)
        )
        selects.append(chosen["records"] / chosen["seconds"])
        whole = measure("mine", budget=options.budget, scratch=str(folder), **given)
        if chosen["fingerprint"] != whole["fingerprint"]:
            raise SystemExit("parts give other keys than one process: nothing is reported")
        for path in folder.glob("*.mgr"):
            path.unlink()
        yield {
            "num_tokens": corpus["num_tokens"],
            "two_processes": statistics.median(ratios),
            "merge_records_per_second": statistics.median(merges),
            "select_records_per_second": statistics.median(selects),
            "records": joined["records"],
            "part_bytes_per_token": sum(each["bytes"] for each in two) / corpus["num_tokens"],
            "rounds": {"two_processes": ratios, "merge": merges, "merge_by_processor": processor, "select": selects},
        }


def engines(corpus: dict[str, Any], options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Ours beside the engines asked for, all on every core, all counting occurrences and documents."""
    table = mining_engines.write_table(corpus["path"], folder / "table.parquet", max(options.orders))
    limit, temporary = options.engine_memory, str(options.temporary or folder)
    times: dict[str, list[float]] = {"memgraft": []}
    given = {"path": corpus["path"], "orders": options.orders, "budget": options.budget, "memory": options.memory}
    asked = {"table": str(table), "orders": options.orders, "scratch": temporary, "memory": limit}
    ratios: dict[str, float] = {}
    refused: dict[str, int] = {}
    found = {"num_tokens": corpus["num_tokens"], "ratios": ratios, "seconds": times, "out_of_memory": refused}
    for turn in range(options.rounds):
        prepare.say(f"{time.strftime('%H:%M:%S')} memgraft, round {turn + 1}")
        ours = measure("mine", threads=os.cpu_count(), scratch=str(folder), **given)
        times["memgraft"].append(ours["seconds"])
        for name in (name for name in options.engine_names if name not in refused):
            prepare.say(f"{time.strftime('%H:%M:%S')} {name}, round {turn + 1}")
            facts = finish(start({"work": "engine", "name": name, **asked}), limit)
            if "out_of_memory" in facts:
                prepare.say(f"{name}: out of memory, above {limit:,} bytes")
                refused[name] = limit
                continue
            if facts["frequent"] != ours["frequent"]:
                raise SystemExit(f"{name} counts {facts['frequent']}, we {ours['frequent']}: nothing is reported")
            times.setdefault(name, []).append(facts["seconds"])
            # An engine that ran out of memory in a later round has fewer rounds than we.
            pairs = zip(times[name], times["memgraft"], strict=False)
            ratios[name] = statistics.median(theirs / mine for theirs, mine in pairs)
            yield found
    yield found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="10M,30M,100M", help="tokens to mine for the cost by size; 0: none")
    parser.add_argument("--parts", default="30M", help="tokens of the comparison of two processes with one; 0: none")
    parser.add_argument("--engines", default="5M", help="tokens that DuckDB and Polars count too; 0: none")
    installed = [name for name in mining_engines.ENGINES if importlib.util.find_spec(name) is not None]
    parser.add_argument("--engine-names", default=",".join(installed), help="which of them")
    most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 4 // 5
    parser.add_argument(
        "--engine-memory", default=str(most), help="stops an engine that takes more (default: 4/5 of all)"
    )
    parser.add_argument("--temporary", type=Path, help="folder for what engines spill (default: the scratch folder)")
    parser.add_argument("--orders", default="2-5", help="lengths of keys")
    parser.add_argument("--budget", default="3M", help="keys to select")
    parser.add_argument("--memory", default="4GiB", help="working memory")
    parser.add_argument("--tokens", type=float, default=330e6, help="tokens of text to fetch where none are cached yet")
    parser.add_argument("--rounds", type=int, default=1, help="rounds of what is compared")
    parser.add_argument("--scratch", type=Path, help="folder for tables, parts and what is spilled")
    parser.add_argument("--out", help="results (default: benches/results/<machine>-<commit>-mining.json)")
    parser.add_argument("--quick", action="store_true", help="a small corpus, small sizes: does it run, not how fast")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(json.loads(options.child))))
        return
    if options.quick:
        options.sizes, options.parts, options.engines = "200k,1M", "1M", "100k"
        options.budget, options.memory = "30k", "16MiB"
    options.orders = parse_range("orders", options.orders)
    options.budget = parse_count("budget", options.budget)
    options.engine_names = [name for name in options.engine_names.split(",") if name]
    options.engine_memory = parse_bytes(options.engine_memory)
    ground = prepare.text(quick=options.quick, tokens=options.tokens)
    facts = {**run.machine(), "commit": run.commit(), "quick": options.quick, "text": ground.facts}
    facts |= {name: getattr(options, name) for name in ("orders", "budget", "memory", "engine_memory", "rounds")}
    results: dict[str, Any] = {}
    usual = run.results_path(facts)
    out = Path(options.out) if options.out else usual.with_name(f"{usual.stem}-mining.json")
    for place in filter(None, (options.scratch, options.temporary)):
        place.mkdir(parents=True, exist_ok=True)

    def keep() -> None:
        # After every answer, so that a run that is stopped leaves what it has measured.
        out.write_text(json.dumps({"machine": facts, "results": results}, indent=1))

    with tempfile.TemporaryDirectory(prefix="memgraft-bench-", dir=options.scratch) as scratch:
        folder = Path(scratch)
        for name, size, work in (("engines", options.engines, engines), ("parts", options.parts, in_parts)):
            for tokens in counts(name, size):
                for results[name] in work(corpus_of(ground, tokens, folder), options, folder):
                    keep()
                clear(folder)
        results["linear"] = []
        for tokens in counts("sizes", options.sizes):
            results["linear"] += linear([corpus_of(ground, tokens, folder)], options, scratch)
            keep()
            clear(folder)
    print(json.dumps(results, indent=1))
    print(f"raw results: {out}", file=sys.stderr)


if __name__ == "__main__":
    main()
