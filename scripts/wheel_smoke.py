"""Use an installed wheel as its first user would: the index half, with numpy and nothing else installed."""

import importlib.util
import sys
import tempfile
from pathlib import Path

import numpy as np

import memgraft


def main() -> None:
    for name in ("torch", "transformers", "typer", "rich", "tokenizers"):
        if importlib.util.find_spec(name) is not None:
            sys.exit(f"expected an environment with numpy alone, found {name}")

    rng = np.random.default_rng(0)
    tokens = rng.zipf(1.3, size=200_000).clip(max=999).astype(np.uint16)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        np.save(path / "corpus.npy", tokens)
        corpus = memgraft.Corpus.open(path / "corpus.npy", eos_id=0)
        keys = memgraft.mine(corpus, orders=(2, 3, 4), budget=3_000, vocab_size=1_000)
        memgraft.NgramIndex.build(keys).save(path / "index.mgi")
        index = memgraft.NgramIndex.open(path / "index.mgi")
        index.verify()
        rows, orders = index.lookup(tokens, eos_id=0)
        for position in np.flatnonzero(rows >= 0)[:1000]:
            order = int(orders[position])
            ending_here = tuple(int(token) for token in tokens[position - order + 1 : position + 1])
            if index.key(int(rows[position])) != ending_here:
                sys.exit(f"position {position}: row {rows[position]} is not {ending_here}")
        if not (rows >= 0).any():
            sys.exit("no position hit: the mined keys do not match the corpus they came from")
    if "torch" in sys.modules:
        sys.exit("import memgraft pulled in torch")
    print(f"memgraft {memgraft.__version__}: {len(keys)} keys, {np.mean(rows >= 0):.1%} of positions hit")


if __name__ == "__main__":
    main()
