"""A comparison whose answer is known: banks whose rows know the next token, and banks whose rows know nothing.

    python docs/study/small/plant.py OUT
    memgraft compare OUT/knows.yaml
    memgraft compare OUT/nothing.yaml

Text is drawn from a chain of second order: after two words the next one is nearly always the same. Keys are the pairs.
A row of the bank `knows` is a fixed vector of the word that follows; a row of `nothing` is drawn without a look at it.
"""

import shutil
import sys
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

import memgraft
from memgraft.bank import Bank

WORDS, WIDTH, DOCUMENT = 40, 32, 400
SURE = 0.85
"""How often the word that a pair names follows; otherwise any."""
HERE = Path(__file__).parent


def document(after: np.ndarray, seed: int) -> str:
    """One text of the chain."""
    rng = np.random.default_rng(seed)
    words = rng.integers(WORDS, size=2).tolist()
    while len(words) < DOCUMENT:
        words.append(int(after[words[-2], words[-1]]) if rng.random() < SURE else int(rng.integers(WORDS)))
    return " ".join(f"w{word}" for word in words)


def main(out: Path) -> None:
    """Writes corpora, tokenizer, both banks and both comparison files."""
    out.mkdir(parents=True)
    after = np.random.default_rng(0).integers(WORDS, size=(WORDS, WORDS))
    vocabulary = {"<eos>": 0, **{f"w{word}": word + 1 for word in range(WORDS)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(out / "tokenizer.json"))
    for part, seeds in (("training", range(1, 61)), ("held-out", range(101, 109))):
        (out / part).mkdir()
        for seed in seeds:
            (out / part / f"{seed}.txt").write_text(document(after, seed))
        memgraft.tokenize_folder(out / part, out / "tokenizer.json", out / f"{part}-tokens", eos=0)
    keys = memgraft.mine(memgraft.Corpus.open(out / "training-tokens"), orders=(2,), budget=None)
    pairs = keys.arrays(0, len(keys)).tokens.reshape(-1, 2).astype(np.int64) - 1
    rng = np.random.default_rng(1)
    codes = rng.normal(size=(WORDS, WIDTH))
    for name, rows in (
        ("knows", codes[after[pairs[:, 0], pairs[:, 1]]]),
        ("nothing", rng.normal(size=(len(keys), WIDTH))),
    ):
        Bank.create(out / f"bank-{name}", keys=keys, values=rows[:, None].astype(np.float32), taps=(1,), dtype="fp32")
        shutil.copyfile(HERE / f"{name}.yaml", out / f"{name}.yaml")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
