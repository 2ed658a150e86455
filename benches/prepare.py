"""What the benches run over: real text, key sets mined from it, the compiled bench binary."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from memgraft import Corpus, KeySet, mine
from memgraft.assets import cache_directory

BENCHES = Path(__file__).resolve().parent
ORDERS = tuple(range(1, 9))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True, kw_only=True)
class Ground:
    """Paths and facts of one token corpus."""

    root: Path
    facts: dict[str, Any]

    @property
    def tokens(self) -> Path:
        """Stem of what keys are mined from."""
        return self.root / "tokens"

    @property
    def held_out(self) -> Path:
        """Stem of what is looked up."""
        return self.root / "held_out"

    def keys_path(self, num_keys: int) -> Path:
        """Where the most frequent ``num_keys`` keys of this corpus are kept; another corpus, another name."""
        return self.root.parent / "keys" / f"{self.root.name}-{self.facts['tokens']}-{num_keys}.mgk"


def text(*, quick: bool, tokens: float) -> Ground:
    """The corpus, fetched and tokenised if it is not there yet."""
    name = "small" if quick else "text"
    root = cache_directory() / "benches" / name
    if not (root / "about.json").is_file():
        command = [sys.executable, str(BENCHES / "fetch_text.py"), "--name", name]
        command += ["--tokens", "3e6", "--held-out", "5e5", "--sample", "4e6"] if quick else ["--tokens", str(tokens)]
        command += ["--sources", "python"] if quick else []
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return Ground(root=root, facts=json.loads((root / "about.json").read_text()))


def mined(ground: Ground, sizes: list[int], memory: str) -> dict[int, Path]:
    """Key sets of the wanted sizes: the most frequent n-grams of orders 1 to 8 under one threshold for all orders.

    A size beyond what the text holds is completed with synthetic keys, and the file's metadata says how many.
    """
    paths = {size: ground.keys_path(size) for size in sizes}
    missing = sorted((size for size, path in paths.items() if not path.is_file()), reverse=True)
    if not missing:
        return paths
    corpus = Corpus.open(ground.tokens.with_suffix(".bin"), eos_id=ground.facts["eos_id"])
    vocab_size = ground.facts["vocab_size"]
    keys: KeySet | None = None
    # The highest threshold that still leaves enough keys: far less to sort and hold than all that occur twice.
    for min_count in (64, 32, 16, 8, 6, 4, 3, 2):
        expected = 24 * ground.facts["tokens"] / min_count**1.45 / 10
        if expected < missing[0] and min_count > 2:
            continue
        say(f"mining {missing[0]:,} keys: orders 1 to 8, min_count {min_count}")
        keys = mine(corpus, ORDERS, None, min_count=min_count, vocab_size=vocab_size, memory=memory)
        if len(keys) >= missing[0]:
            break
    assert keys is not None
    for size in missing:
        paths[size].parent.mkdir(parents=True, exist_ok=True)
        if size <= len(keys):
            keys.select(np.arange(size)).save(paths[size])
            continue
        with tempfile.TemporaryDirectory(dir=paths[size].parent) as scratch:
            mapped = Path(scratch) / "real.mgk"
            keys.save(mapped)
            keys = KeySet.open(mapped)
            complete(keys, size, Path(scratch)).save(paths[size])
    return paths


def complete(keys: KeySet, size: int, scratch: Path) -> KeySet:
    """``keys`` and as many synthetic ones as it takes: real ones of orders 2 to 4 and a token more, counted once each.

    What is sorted lies in files in ``scratch``, so that memory holds the finished set alone.
    """
    tokens, offsets, counts, _ = keys.arrays()
    offsets = offsets.astype(np.int64)
    lengths = np.diff(offsets)
    hashes = _hashes(tokens, offsets)
    real = np.sort(hashes)
    sources = np.flatnonzero((lengths >= 2) & (lengths <= 4))
    longest = len(tokens) + int((lengths[sources].sum() + len(sources)) * (1 + (size - len(keys)) / len(sources)))
    all_tokens = np.memmap(scratch / "tokens", np.uint32, "w+", shape=(longest,))
    all_offsets = np.memmap(scratch / "offsets", np.uint64, "w+", shape=(size + 1,))
    all_tokens[: len(tokens)], all_offsets[: len(offsets)] = tokens, offsets
    num_keys, end, turn = len(keys), len(tokens), 0
    while num_keys < size:
        if turn == keys.vocab_size - 1:
            raise SystemExit(f"only {num_keys:,} of {size:,} keys can be made of this text; ask for fewer")
        for part in np.array_split(sources, -(-len(sources) // (1 << 22))):
            # One token a turn, another for each key and turn: real keys are distinct, so these are.
            last = (1 + (hashes[part] + np.uint64(turn)) % np.uint64(keys.vocab_size - 1)).astype(np.uint32)
            mixed = _mix(hashes[part], last)
            found = real[np.minimum(np.searchsorted(real, mixed), len(real) - 1)] == mixed
            part, last = part[~found][: size - num_keys], last[~found][: size - num_keys]
            made_lengths = lengths[part] + 1
            ends = np.cumsum(made_lengths)
            made = np.empty(ends[-1] if len(part) else 0, np.uint32)
            kept = np.ones(len(made), bool)
            kept[ends - 1] = False
            within = np.arange(len(made)) - np.repeat(ends - made_lengths, made_lengths)
            made[kept] = tokens[(np.repeat(offsets[part], made_lengths) + within)[kept]]
            made[ends - 1] = last
            all_tokens[end : end + len(made)] = made
            all_offsets[num_keys + 1 : num_keys + 1 + len(part)] = end + ends
            num_keys, end = num_keys + len(part), end + len(made)
        turn += 1
    all_counts = np.memmap(scratch / "counts", np.uint64, "w+", shape=(size,))
    all_counts[: len(keys)], all_counts[len(keys) :] = counts, 1
    metadata = {"real": len(keys), "synthetic": size - len(keys)}
    vocab_size = keys.vocab_size
    del tokens, offsets, lengths, hashes, real, sources, counts
    return KeySet.from_arrays(all_tokens[:end], all_offsets, all_counts, None, vocab_size=vocab_size, metadata=metadata)


def _mix(hashes: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    mixed = (hashes ^ (tokens.astype(np.uint64) + np.uint64(1))) * np.uint64(0x9E3779B97F4A7C15)
    return mixed ^ (mixed >> np.uint64(29))


def _hashes(tokens: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """A 64-bit hash of each key, from its first token to its last."""
    lengths = np.diff(offsets)
    hashes = np.full(len(lengths), 0x51_7C_C1_B7_27_22_0A_95, np.uint64)
    for depth in range(int(lengths.max())):
        alive = np.flatnonzero(lengths > depth)
        hashes[alive] = _mix(hashes[alive], tokens[offsets[alive] + depth])
    return hashes


def binary() -> Path:
    """The bench binary, built."""
    command = ["cargo", "build", "--release", "--quiet", "-p", "memgraft-benches"]
    subprocess.run(command, check=True, cwd=BENCHES.parent)
    target = Path(os.environ.get("CARGO_TARGET_DIR", BENCHES.parent / "target"))
    return target / "release" / "memgraft-bench"
