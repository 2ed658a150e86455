"""What the benches run over: real text, key sets mined from it, the compiled bench binary."""

import json
import os
import subprocess
import sys
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
        chosen = keys.select(np.arange(size)) if size <= len(keys) else complete(keys, size)
        paths[size].parent.mkdir(parents=True, exist_ok=True)
        chosen.save(paths[size])
    return paths


def complete(keys: KeySet, size: int) -> KeySet:
    """``keys`` and as many synthetic ones as it takes: real keys with the last token replaced, counted once each."""
    rng = np.random.default_rng(7)
    tokens, offsets, counts, _ = keys.arrays()
    lengths = np.diff(offsets).astype(np.int64)
    wanted = size - len(keys)
    sources = rng.integers(0, len(keys), 2 * wanted)
    sources = sources[lengths[sources] >= 3][: wanted + wanted // 4]
    flat = np.concatenate([[0], np.cumsum(lengths[sources])])
    places = np.repeat(offsets[sources].astype(np.int64), lengths[sources]) + (
        np.arange(flat[-1]) - np.repeat(flat[:-1], lengths[sources])
    )
    made = tokens[places]
    made[flat[1:] - 1] = rng.integers(1, keys.vocab_size, len(sources))
    # Distinct by a 64-bit hash of the whole key, among themselves and from the real ones.
    hashes = np.concatenate([_hashes(tokens, offsets.astype(np.int64)), _hashes(made, flat)])
    _, firsts = np.unique(hashes, return_index=True)
    fresh = np.sort(firsts[firsts >= len(keys)])[:wanted] - len(keys)
    if len(fresh) < wanted:
        raise SystemExit(f"only {len(fresh):,} of {wanted:,} synthetic keys are distinct; ask for fewer keys")
    picked = np.concatenate([[0], np.cumsum(lengths[sources[fresh]])])
    places = np.repeat(flat[fresh], lengths[sources[fresh]]) + (
        np.arange(picked[-1]) - np.repeat(picked[:-1], lengths[sources[fresh]])
    )
    return KeySet.from_arrays(
        np.concatenate([tokens, made[places]]),
        np.concatenate([offsets, offsets[-1] + picked[1:].astype(np.uint64)]),
        np.concatenate([counts, np.ones(wanted, np.uint64)]),
        None,
        vocab_size=keys.vocab_size,
        metadata={"real": len(keys), "synthetic": wanted},
    )


def _hashes(tokens: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    lengths = np.diff(offsets)
    hashes = lengths.astype(np.uint64)
    for depth in range(int(lengths.max())):
        alive = np.flatnonzero(lengths > depth)
        mixed = (hashes[alive] ^ (tokens[offsets[alive] + depth].astype(np.uint64) + np.uint64(1))) * np.uint64(
            0x9E3779B97F4A7C15
        )
        hashes[alive] = mixed ^ (mixed >> np.uint64(29))
    return hashes


def binary() -> Path:
    """The bench binary, built."""
    command = ["cargo", "build", "--release", "--quiet", "-p", "memgraft-benches"]
    subprocess.run(command, check=True, cwd=BENCHES.parent)
    target = Path(os.environ.get("CARGO_TARGET_DIR", BENCHES.parent / "target"))
    return target / "release" / "memgraft-bench"
