"""Real tokens for the benchmarks: Debian packages of prose, manuals and code, fetched once and cached.

    python benches/corpus.py [--megabytes 420] [--vocab 32000] [--cache DIR]

Leaves ``tokens.bin`` (uint16), ``documents.npy`` (starts, uint64) and ``held_out.bin`` (every 20th document) in the
cache, ``$MEMGRAFT_BENCH`` or ``~/.cache/memgraft-bench``; nothing is installed and nothing lands in the repository.
Needs ``apt-get`` and ``dpkg-deb`` (Debian, Ubuntu) and the ``tokenizers`` package.
"""

from __future__ import annotations

import argparse
import gzip
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

PACKAGES = (
    "dict-gcide",
    "dict-wn",
    "manpages",
    "manpages-dev",
    "perl-doc",
    "python3.11-doc",
    "linux-source-6.1",
    "golang-1.19-src",
    "rust-src",
    "openjdk-17-source",
)
SUFFIXES = {".pod", ".txt", ".rst", ".c", ".h", ".rs", ".go", ".java", ".S", ".py"}
LEFT_OUT = ("drivers/gpu/drm/amd/include",)
HELD_OUT_EVERY = 20


def cache_dir(named: str | None = None) -> Path:
    return Path(named or os.environ.get("MEMGRAFT_BENCH", Path.home() / ".cache" / "memgraft-bench"))


def fetch(cache: Path) -> list[Path]:
    packages = cache / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    trees = []
    for name in PACKAGES:
        tree = packages / name
        if not tree.exists():
            subprocess.run(["apt-get", "download", "-q", name], cwd=packages, check=True, stdout=subprocess.DEVNULL)
            (package,) = packages.glob(f"{name}_*.deb")
            subprocess.run(["dpkg-deb", "-x", package, f"{tree}.part"], check=True)
            Path(f"{tree}.part").rename(tree)
        trees.append(tree)
    return trees


def documents(trees: list[Path]) -> Iterator[str]:
    """Prose and manuals first, then code, each file a document."""
    for tree in trees:
        for path in sorted(p for p in tree.rglob("*") if p.is_file() and not p.is_symlink()):
            if path.suffix == ".dz" or (path.suffix == ".gz" and "man" in path.parts):
                yield gzip.decompress(path.read_bytes()).decode("utf-8", "replace")
            elif path.name.endswith((".tar.xz", ".zip")):
                yield from archived(path)
            elif path.suffix in SUFFIXES and not any(part in str(path) for part in LEFT_OUT):
                yield path.read_bytes().decode("utf-8", "replace")


def archived(path: Path) -> Iterator[str]:
    if path.suffix == ".zip":
        import zipfile

        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                if Path(name).suffix in SUFFIXES:
                    yield archive.read(name).decode("utf-8", "replace")
        return
    with tarfile.open(path, "r|xz") as stream:
        for member in stream:
            wanted = Path(member.name).suffix in SUFFIXES and not any(part in member.name for part in LEFT_OUT)
            if wanted and member.isfile() and (data := stream.extractfile(member)) is not None:
                yield data.read().decode("utf-8", "replace")


def chunks(texts: Iterator[str], limit: int, size: int = 4 << 20) -> Iterator[list[str]]:
    batch, held, total = [], 0, 0
    for text in texts:
        if not text:
            continue
        # No single document may dwarf the others: a dictionary is cut into articles of about 64 kB.
        for start in range(0, len(text), 1 << 16):
            piece = text[start : start + (1 << 16)]
            batch.append(piece)
            held += len(piece)
            total += len(piece)
        if held >= size:
            yield batch
            batch, held = [], 0
        if total >= limit:
            break
    if batch:
        yield batch


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=420)
    parser.add_argument("--vocab", type=int, default=32000)
    parser.add_argument("--cache")
    options = parser.parse_args()
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    cache = cache_dir(options.cache)
    cache.mkdir(parents=True, exist_ok=True)
    trees = fetch(cache)
    model = cache / "tokenizer.json"
    if not model.exists():
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=options.vocab,
            special_tokens=["<eos>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        sample = (text for i, batch in enumerate(chunks(documents(trees), 300 << 20)) if i % 8 == 0 for text in batch)
        tokenizer.train_from_iterator(sample, trainer)
        tokenizer.save(str(model))
    tokenizer = Tokenizer.from_file(str(model))
    starts, position, number = [0], 0, 0
    with (cache / "tokens.bin.part").open("wb") as tokens, (cache / "held_out.bin.part").open("wb") as held_out:
        for batch in chunks(documents(trees), options.megabytes << 20):
            for encoded in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
                ids = np.array([*encoded.ids, 0], dtype=np.uint16)
                number += 1
                if number % HELD_OUT_EVERY == 0:
                    ids.tofile(held_out)
                else:
                    ids.tofile(tokens)
                    position += len(ids)
                    starts.append(position)
            print(f"\r{position / 1e6:.0f} M tokens", end="", file=sys.stderr)
    np.save(cache / "documents.npy", np.array(starts, dtype=np.uint64))
    for name in ("tokens.bin", "held_out.bin"):
        (cache / f"{name}.part").rename(cache / name)
    print(f"\n{position} tokens of {number} documents in {cache}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
