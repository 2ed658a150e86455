"""Material of the large comparison: tokens and keys here, the bank where the GPU is.

    python benches/fetch_text.py                                     # real text: manuals, documentation, source code
    python docs/study/large/prepare.py tokens OUT                    # corpora, tokenizer, keys: no GPU needed
    python docs/study/large/prepare.py bank OUT --donor FOLDER_OR_GGUF
    memgraft compare docs/study/large/config.yaml                    # with OUT as docs/study/large/material

What is done is kept; the same command goes on from there.
"""

import argparse
import shutil
import sys
from pathlib import Path

import numpy as np

import memgraft
from memgraft.assets import cache_directory
from memgraft.corpus import CorpusWriter

EOS = 0
HELD_OUT_TOKENS = 1_100_000
ORDERS = (2, 3, 4)
TAP = 8


def write_part(source: memgraft.Corpus, out: Path, tokens: int) -> None:
    """The first documents of ``source``, each closed by the end-of-text id, until ``tokens`` are written."""
    if out.with_suffix(".bin").exists():
        return
    written = 0
    with CorpusWriter(out, vocab_size=source.vocab_size, special_ids=[EOS], eos_id=EOS) as writer:
        for number in range(source.num_documents):
            if written >= tokens:
                break
            document = source.document(number)
            writer.add(np.append(document, EOS))
            written += len(document) + 1
        writer.finish()
    sys.stderr.write(f"{out}: {written:,} tokens\n")


def tokens(out: Path, wanted: int, keys: int) -> None:
    """Corpora, tokenizer and keys."""
    text = cache_directory() / "benches" / "text"
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(text / "tokenizer.json", out / "tokenizer.json")
    write_part(memgraft.Corpus.open(text / "tokens.bin"), out / "training", wanted)
    write_part(memgraft.Corpus.open(text / "held_out.bin"), out / "held-out", HELD_OUT_TOKENS)
    if not (out / "keys.mgk").exists():
        corpus = memgraft.Corpus.open(out / "training.bin")
        memgraft.mine(corpus, orders=ORDERS, budget=keys, vocab_size=corpus.vocab_size).save(out / "keys.mgk")


def bank(out: Path, donor: str, dtype: str) -> None:
    """The bank: every key behind the prefix that the probe chooses, read after block ``TAP``."""
    memgraft.harvest(
        memgraft.KeySet.open(out / "keys.mgk"),
        recipient_tokenizer=out / "tokenizer.json",
        donor=donor,
        taps=(TAP,),
        out=out / "bank",
        dtype=dtype,
    )


def main() -> None:
    """Run one of the two steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("tokens", "bank"))
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokens", type=float, default=25e6)
    parser.add_argument("--keys", type=int, default=60_000)
    parser.add_argument("--dtype", default="int8")
    parser.add_argument("--donor", default="")
    options = parser.parse_args()
    if options.step == "tokens":
        tokens(options.out, int(options.tokens), options.keys)
    else:
        bank(options.out, options.donor, options.dtype)


if __name__ == "__main__":
    main()
