"""Material of the comparison on a pretrained recipient: a domain that it cannot have seen, keys and a bank.

    python docs/study/attached/prepare.py docs/study/attached/material
    memgraft compare docs/study/attached/config.yaml

The domain is the text of this repository, code and pages, which is younger than the recipient. Recipient and donor are
SmolLM2-135M-Instruct, the quickstart's donor.
"""

import argparse
import shutil
from pathlib import Path

import memgraft
from memgraft.assets import default_donor
from memgraft.harvesting import donor_folder

REPOSITORY = Path(__file__).resolve().parents[3]
KINDS = (".py", ".rs", ".md", ".toml")
TAP = 8


def main() -> None:
    """Text, tokens, keys, recipient, bank; what is there is kept."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--source", type=Path, default=REPOSITORY)
    parser.add_argument("--recipient", type=Path, default=None, help="a transformers folder; default: the donor's")
    parser.add_argument("--budget", type=int, default=6000)
    parser.add_argument("--tap", type=int, default=TAP)
    options = parser.parse_args()
    out = options.out
    recipient = options.recipient or donor_folder(default_donor())
    texts = out / "texts"
    if not texts.exists():
        (out / "writing").mkdir(parents=True)
        for folder in ("python", "rust", "tests", "docs", "benches"):
            for path in sorted((options.source / folder).rglob("*")):
                if path.suffix in KINDS and "material" not in path.parts:
                    name = "-".join(path.relative_to(options.source).parts)
                    shutil.copyfile(path, out / "writing" / f"{name}.txt")
        (out / "writing").rename(texts)
    if not (out / "recipient").exists():
        shutil.copytree(recipient, out / "recipient")
    if not (out / "tokens.bin").exists():
        memgraft.tokenize_folder(texts, out / "recipient", out / "tokens")
    training, _ = memgraft.Corpus.open(out / "tokens.bin").split(held_out=0.2, seed=0)
    if not (out / "keys.mgk").exists():
        memgraft.mine(training, orders=(2, 3, 4), budget=options.budget).save(out / "keys.mgk")
    memgraft.harvest(
        memgraft.KeySet.open(out / "keys.mgk"),
        recipient_tokenizer=out / "recipient",
        donor=out / "recipient",
        taps=(options.tap,),
        out=out / "bank",
    )


if __name__ == "__main__":
    main()
