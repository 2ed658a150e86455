"""Banks for tests."""

import itertools
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np

from memgraft.bank import Bank
from memgraft.keyset import KeySet

VOCAB = 50


def child_environment(*folders: Path) -> dict[str, str]:
    """For a child process that imports test modules from ``folders``, and memgraft from where this one has it."""
    paths = [*map(str, folders), os.environ.get("PYTHONPATH")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def in_memory_only(folder: Path) -> bool:
    """Whether ``folder`` lies in memory, as /tmp does on many machines: nothing there is ever cold."""
    got = subprocess.run(["stat", "-f", "-c", "%T", str(folder)], capture_output=True, text=True, check=False)
    return got.stdout.strip() in ("tmpfs", "ramfs")


def make_keys(num_rows: int) -> KeySet:
    """Keys of orders 1 and 2, counts descending."""
    orders = [(token,) for token in range(VOCAB)], itertools.product(range(VOCAB), repeat=2)
    keys = list(itertools.islice(itertools.chain(*orders), num_rows))
    return KeySet.from_keys(keys, counts=list(range(num_rows + 1, 1, -1)), vocab_size=VOCAB)


def make_values(num_rows: int, taps: int = 2, value_dim: int = 24, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(num_rows, taps, value_dim)).astype(np.float32)


def bank_maker(folder: Path) -> Callable[..., Bank]:
    numbers = itertools.count()

    def make(num_rows: int = 300, *, taps: int = 2, value_dim: int = 24, dtype: str = "bf16", **options) -> Bank:
        path = options.pop("path", folder / f"bank{next(numbers)}")
        values = options.pop("values", None)
        return Bank.create(
            path,
            keys=make_keys(num_rows),
            values=make_values(num_rows, taps, value_dim) if values is None else values,
            taps=tuple(range(8, 8 + taps)),
            dtype=dtype,
            donor={"fingerprint": "d" * 64, "name": "tiny"},
            tokenizer={"fingerprint": "e" * 64},
            **options,
        )

    return make
