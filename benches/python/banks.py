"""Banks of random values for the benches: what the values say does not matter, where they lie does."""

from pathlib import Path

import numpy as np

from memgraft import Bank, BankWriter, KeySet


def make_bank(path: Path, keys: KeySet, row_bytes: int, *, seed: int = 0, plain: bool = False) -> Bank:
    """A bank of bf16 rows of ``row_bytes`` bytes, one tap, in one shard; finite values, no two rows alike.

    ``plain`` values are of size 1 and may be fed to a model; the others are any bits.
    """
    rng = np.random.default_rng(seed)
    value_dim = row_bytes // 2
    # One block of random words, used again and again: a bank of many GB must not take minutes.
    low, high = (0x3F00, 0x4000) if plain else (0, 0x7F00)
    block = rng.integers(low, high, size=(4096, value_dim), dtype=np.uint16)
    donor, tokenizer = {"name": "random"}, {"name": "bench"}
    with BankWriter(
        path, keys=keys, taps=(1,), value_dim=value_dim, donor=donor, tokenizer=tokenizer, shard_bytes=1 << 50
    ) as writer:
        for start in range(0, len(keys), len(block)):
            chunk = block[: len(keys) - start].copy()
            rows = np.arange(start, start + len(chunk))
            chunk[:, 0], chunk[:, 1] = low + rows % (high - low), low + rows // (high - low) % (high - low)
            chunk[:, 2] = low + rows // (high - low) ** 2
            writer.write(start, chunk[:, None, :])
        return writer.finish()


def shard_files(bank: Bank) -> list[Path]:
    return [bank.path / shard.file for shard in bank.manifest.shards]


def values_offset(bank: Bank) -> int:
    """Where the values of a one-shard bank start in their file."""
    (file,) = shard_files(bank)
    with file.open("rb") as handle:
        return 8 + int.from_bytes(handle.read(8), "little")


def raw_values(bank: Bank) -> np.memmap:
    """The rows of a one-shard bank as a plain numpy memmap ``(R, row_bytes / 2)`` uint16."""
    (file,) = shard_files(bank)
    shape = (bank.num_rows, bank.value_dim)
    return np.memmap(file, dtype=np.uint16, mode="r", offset=values_offset(bank), shape=shape)
