"""Inputs of the fuzz target `open_runs` from parts of small corpora: `python rust/fuzz/seed_runs.py FOLDER`.

With `--older OLD`, the inputs in the folder `OLD` that were written before the target knew version 1.1 are copied too,
marked as of version 1.0.
"""

import argparse
import json
import struct
import tempfile
from pathlib import Path

import numpy as np

import memgraft
from memgraft.corpus import CorpusWriter
from memgraft.mining import mine_part

#: Vocabulary size, longest order, tokens, distinct tokens, documents, world: keys of 1 to 6 words, tags, counts.
CASES = [
    (2, 16, 300, 2, 3, 1), (255, 1, 200, 40, 4, 1), (256, 7, 200, 5, 9, 2), (32768, 5, 300, 6, 12, 1),
    (32768, 4, 250, 9, 5, 3), (65535, 3, 300, 4, 2, 1), (131072, 5, 200, 7, 20, 1), (262144, 16, 120, 3, 2, 1),
    (1 << 20, 3, 250, 12, 30, 2), (50257, 8, 700, 2, 7, 1),
]  # fmt: skip
FILE_IS_WHOLE, TWO_RANGES, OLDER = 4, 8, 16


def inputs(path: Path) -> list[bytes]:
    """The run file at ``path`` as the target takes it apart, and as it is."""
    file = path.read_bytes()
    offset, length = struct.unpack_from("<QQ", file, 16)
    tail = file[offset : offset + length]
    (size,) = struct.unpack_from("<Q", tail)
    facts, table = json.loads(tail[8 : 8 + size]), tail[8 + size :]
    text = json.dumps(facts, separators=(",", ":")).encode()
    entries = [struct.unpack_from("<I4xQQ", table, at) for at in range(0, len(table), 56)]
    segments = b"".join(struct.pack("<IH", token, size) for token, _, size in entries)
    body = struct.pack("<H", len(text)) + text + bytes([len(entries)]) + segments + file[64:offset]
    return [bytes([0]) + body, bytes([TWO_RANGES]) + body, bytes([FILE_IS_WHOLE]) + file]


def main() -> None:
    """Writes the inputs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the inputs go")
    parser.add_argument("--older", type=Path, help="folder of inputs of version 1.0")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for old in sorted(options.older.iterdir()) if options.older else ():
        data = old.read_bytes()
        if data and not data[0] & FILE_IS_WHOLE:
            data = bytes([data[0] | OLDER]) + data[1:]
        (options.folder / f"older-{old.name}").write_bytes(data)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as scratch:
        for index, (vocab_size, order, tokens, distinct, documents, world) in enumerate(CASES):
            ids = rng.choice(vocab_size, size=min(distinct, vocab_size), replace=False)
            with CorpusWriter(Path(scratch) / f"corpus-{index}", vocab_size=vocab_size, eos_id=int(ids[0])) as writer:
                lengths = np.diff(np.linspace(0, tokens, documents + 1).astype(np.int64))
                writer.add_many(rng.choice(ids, size=tokens).astype(np.uint32), lengths)
                corpus = memgraft.Corpus.open(writer.finish())
            for rank in range(world):
                path = Path(scratch) / f"{index}-{rank}.mgr"
                mine_part(corpus, path, range(1, order + 1), rank=rank, world=world, memory="64MiB", threads=1)
                for kind, data in enumerate(inputs(path)):
                    (options.folder / f"part-{index}-{rank}-{kind}").write_bytes(data)


if __name__ == "__main__":
    main()
