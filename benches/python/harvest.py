"""Values a second: each prefix once beside every key alone, one process beside two, and what is not the donor's time.

The donor is SmolLM2-135M after block 8. Keys are the most frequent n-grams of orders 2 to 4, once in the donor's own
tokenizer and once in another one that was trained on the text. What is timed is whole chunks from all over the order.
"""

import dataclasses
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contest import Contender, WrongAnswer, contest
from settings import Settings, main
from tokenizers import Tokenizer

from memgraft import Corpus, KeySet, harvest, mine
from memgraft.assets import cache_directory, default_donor
from memgraft.corpus import CorpusWriter
from memgraft.harvesting import donor_folder, open_donor
from memgraft.harvesting.donor import Donor
from memgraft.harvesting.forward import batches_by_length
from memgraft.harvesting.job import Job, prepare
from memgraft.harvesting.packing import Ragged, tree_batches
from memgraft.harvesting.readers import KeysAlone
from memgraft.harvesting.selecting import select_keys
from memgraft.harvesting.sharing import Sharing, relative_error

TAP, PREFIX, BATCH_TOKENS = 8, "\n", 1024
ROUNDING = {"float32": 2e-5, "bfloat16": 5e-2}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    tokens: int
    keys: int
    chunk_rows: int
    chunks: int
    """Chunks that are timed, spread over the order."""
    processes_keys: int
    """Keys that one process, and two, harvest."""
    rounds: int


def sizes(settings: Settings) -> Sizes:
    """A quick run says that everything runs, not how fast."""
    if settings.quick:
        return Sizes(tokens=50_000, keys=400, chunk_rows=128, chunks=1, processes_keys=64, rounds=1)
    return Sizes(
        tokens=21_000_000,
        keys=100_000,
        chunk_rows=2048,
        chunks=4,
        processes_keys=8_192,
        rounds=min(settings.rounds, 5),
    )


def texts(root: Path) -> Iterator[list[str]]:
    """The documents of the benches' text, some hundred at a time."""
    ends = np.load(root / "text" / "ends.npy").tolist()
    with (root / "text" / "text.bin").open("rb") as handle:
        start = 0
        for first in range(0, len(ends), 256):
            documents = []
            for end in ends[first : first + 256]:
                documents.append(handle.read(end - start).decode())
                start = end
            yield documents


def real_keys(root: Path, name: str, tokenizer: Path, size: Sizes) -> Path:
    """The most frequent keys of orders 2 to 4 of the first ``size.tokens`` tokens; kept between runs."""
    folder = cache_directory() / "benches" / "keys"
    path = folder / f"harvest-{root.name}-{name}-{size.tokens}-{size.keys}.mgk"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        codec = Tokenizer.from_file(str(tokenizer))
        stem = path.with_suffix("")
        with CorpusWriter(stem, vocab_size=codec.get_vocab_size(), special_ids=[0]) as writer:
            written = 0
            for documents in texts(root):
                for read in codec.encode_batch_fast(documents, add_special_tokens=False):
                    writer.add(np.array(read.ids, np.uint32))
                    written += len(read.ids)
                if written >= size.tokens:
                    break
            corpus = writer.finish()
        mine(Corpus.open(corpus), orders=(2, 3, 4), budget=size.keys).save(path)
        for suffix in (".bin", ".idx", ".json"):
            stem.with_suffix(suffix).unlink()
    return path


def case(settings: Settings, size: Sizes, donor: Donor, keys_path: Path, tokenizer: Path) -> dict[str, Any]:
    """Everything for one key set."""
    keys, out = KeySet.open(keys_path), settings.scratch_path / f"{keys_path.stem}-bank"
    job = prepare(
        keys,
        recipient_tokenizer=tokenizer,
        donor=donor,
        taps=(TAP,),
        out=out,
        prefix=PREFIX,
        batch_tokens=BATCH_TOKENS,
        chunk_rows=size.chunk_rows,
    )
    assert isinstance(job, Job)
    shared = job.reader
    assert isinstance(shared, KeysAlone)
    if not shared.sharing.shared:
        raise WrongAnswer(f"prefixes are not shared: {shared.sharing.reason}")
    alone = dataclasses.replace(shared, sharing=Sharing(shared=False, reason="to compare"))
    number = -(-len(shared.order) // size.chunk_rows)
    starts = [place * number // size.chunks * size.chunk_rows for place in range(size.chunks)]
    parts = [np.asarray(shared.order[start : start + size.chunk_rows]) for start in starts]
    for rows in parts:
        error = relative_error(shared.values(rows), alone.values(rows))
        if not error <= ROUNDING[donor.compute_dtype]:
            raise WrongAnswer(f"shared states differ by {error:.3g} of their norm from those of keys alone")
    num_keys = sum(map(len, parts))
    few = parts[0][:8] if settings.quick else parts[0][:64]
    timings = contest(
        [
            Contender("each prefix once", num_keys, lambda: [shared.values(rows) for rows in parts]),
            Contender("every key alone, batches alike in length", num_keys, lambda: [alone.values(r) for r in parts]),
            Contender("every block, one key at a time", len(few), lambda: every_block(donor, shared, few)),
        ],
        size.rounds,
    )
    timed = [shared.selection.tokens.take(rows).headed(shared.setup.prefix.ids) for rows in parts]
    donor_seconds = timings[0]["ns"] / 1e9
    text, writing = text_seconds(job), writing_seconds(job, starts)
    return {
        "num_keys": len(shared.order),
        "dropped": job.selection.dropped,
        "timed_keys": num_keys,
        "tokens_to_a_prefix": shared.facts["num_donor_tokens"] / shared.facts["num_prefixes"],
        "tokens_to_a_prefix_timed": sum(len(part.tokens) for part in timed) / sum(map(distinct, timed)),
        "padding_share": padding(timed),
        "padding_share_alone": padding_alone(timed),
        "text_and_writing_share": (text + writing) / (text + writing + donor_seconds),
        "text_us": text * 1e6,
        "writing_us": writing * 1e6,
        "processes": processes(settings, size, keys_path, tokenizer),
        "timings": timings,
    }


def every_block(donor: Donor, reader: KeysAlone, rows: np.ndarray) -> torch.Tensor:
    """What a script does: one key, every block, all hidden states."""
    tokens, states = reader.selection.tokens.take(rows).headed(reader.setup.prefix.ids), []
    for place in range(len(tokens)):
        ids = torch.from_numpy(tokens.part(place, place + 1).tokens.astype(np.int64))[None]
        with torch.inference_mode():
            output = donor.model(ids, output_hidden_states=True, use_cache=False)
        states.append(output.hidden_states[TAP][0, -1])
    return torch.stack(states)


def distinct(keys: Ragged) -> int:
    """Distinct beginnings of ``keys``."""
    lists = np.split(keys.tokens, keys.offsets[1:-1])
    return len({each[:length].tobytes() for each in lists for length in range(1, len(each) + 1)})


def padding(parts: list[Ragged]) -> float:
    """Share of places that hold no token, where each prefix is run once."""
    batches = [batch for part in parts for batch in tree_batches(part, BATCH_TOKENS)]
    return 1 - sum(batch.num_tokens for batch in batches) / sum(batch.tokens.size for batch in batches)


def padding_alone(parts: list[Ragged]) -> float:
    """The same of keys in batches alike in length."""
    places = sum(
        len(batch) * int(part.lengths[batch].max())
        for part in parts
        for batch in batches_by_length(part.lengths, BATCH_TOKENS)
    )
    return 1 - sum(len(part.tokens) for part in parts) / places


def text_seconds(job: Job) -> float:
    """Seconds a key for judging its text and sorting."""
    began = time.perf_counter()
    select_keys(job.keys, job.setup.recipient, job.setup.donor.tokenizer, job.setup.round_trip)
    return (time.perf_counter() - began) / len(job.keys)


def writing_seconds(job: Job, starts: list[int]) -> float:
    """Seconds a key that writing takes from the donor: its processor time, and what the donor waits for it.

    As in a harvest, a chunk is written and synced while the donor computes the next one.
    """
    taken, waited, number = 0.0, 0.0, 0

    def write(start: int, values: torch.Tensor) -> None:
        nonlocal taken
        began = time.thread_time()
        writer.write(start, values)
        taken += time.thread_time() - began

    with job.writer(0, 1) as writer, ThreadPoolExecutor(1) as thread:
        writing: Future[None] | None = None
        for start in starts:
            values = job.values(start, min(start + job.chunk_rows, writer.num_rows))
            began = time.perf_counter()
            if writing is not None:
                writing.result()
            waited += time.perf_counter() - began
            writing = thread.submit(write, start, values)
            number += len(values)
        if writing is not None:
            writing.result()
    return (taken + waited) / number


def processes(settings: Settings, size: Sizes, keys_path: Path, tokenizer: Path) -> dict[str, Any]:
    """One process with one thread beside two of them, in turn: the same keys, the donor's time alone."""
    keys = KeySet.open(keys_path)
    rows = np.unique(np.linspace(0, len(keys) - 1, size.processes_keys).astype(np.int64))
    few = settings.scratch_path / f"{keys_path.stem}-few.mgk"
    keys.select(rows).save(few)
    rounds: dict[int, list[float]] = {1: [], 2: []}
    growth = 0.0
    for turn in range(max(1, size.rounds - 2)):
        for world in (1, 2) if turn % 2 == 0 else (2, 1):
            out = settings.scratch_path / f"{keys_path.stem}-{world}-{turn}"
            command = [
                sys.executable,
                __file__,
                "process",
                str(few),
                str(tokenizer),
                str(out),
                str(size.chunk_rows // 8),
            ]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            ranks = [
                subprocess.Popen([*command, str(rank), str(world)], stdout=subprocess.PIPE, env=environment)
                for rank in range(world)
            ]
            outputs = [rank.communicate()[0] for rank in ranks]
            if any(rank.returncode for rank in ranks):
                raise RuntimeError(f"ranks of a world of {world} ended with {[rank.returncode for rank in ranks]}")
            told = [json.loads(output.splitlines()[-1]) for output in outputs]
            rounds[world].append(max(one["ended"] for one in told) - max(one["begun"] for one in told))
            growth = max(growth, *(one["growth_mib"] for one in told))
    ratio = sorted(one / two for one, two in zip(rounds[1], rounds[2], strict=True))
    return {
        "num_keys": len(rows),
        "seconds": rounds,
        "two_over_one": ratio[len(ratio) // 2],
        "memory_growth_mib": growth,
    }


def process(keys: str, tokenizer: str, out: str, chunk_rows: str, rank: str, world: str) -> None:
    """One rank; it begins with the others, and prints when it began and ended."""
    torch.set_num_threads(1)
    begun = ended = before = 0.0

    def report(phase: str, done: int, total: int) -> None:
        nonlocal begun, ended, before
        if phase != "donor":
            return
        if not begun:
            Path(f"{out}-ready-{rank}").touch()
            while not all(Path(f"{out}-ready-{other}").exists() for other in range(int(world))):
                time.sleep(0.002)
            begun, before = time.monotonic(), peak_mib()
        ended = time.monotonic()

    harvest(
        KeySet.open(keys),
        recipient_tokenizer=tokenizer,
        donor=donor_folder(default_donor()),
        taps=(TAP,),
        out=out,
        prefix=PREFIX,
        batch_tokens=BATCH_TOKENS,
        chunk_rows=int(chunk_rows),
        rank=int(rank),
        world_size=int(world),
        progress=report,
    )
    print(json.dumps({"begun": begun, "ended": ended, "growth_mib": peak_mib() - before}))


def peak_mib() -> float:
    """Most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def group(settings: Settings) -> dict[str, Any]:
    """Both key sets."""
    size, root = sizes(settings), Path(settings.corpus).parent
    donor = open_donor(default_donor())
    own = donor_folder(default_donor()) / "tokenizer.json"
    found: dict[str, Any] = {"unit": "key", "tap": TAP, "compute_dtype": donor.compute_dtype}
    for name, tokenizer in (("own-tokenizer", own), ("other-tokenizer", root / "tokenizer.json")):
        found[name] = case(settings, size, donor, real_keys(root, name, tokenizer, size), tokenizer)
    return found


if __name__ == "__main__":
    if sys.argv[1:2] == ["process"]:
        process(*sys.argv[2:])
    else:
        main(group)
