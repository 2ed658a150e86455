"""Small corpora, a tokenizer and a bank that tests of experiments share."""

import memgraft
from memgraft.experiments import Recipe, TokenWindows
from memgraft.experiments.train import Material
from memgraft.harvesting import harvest
from tiny import byte_bpe, tiny_donor, tiny_text

RECIPE = Recipe(
    width=48, num_blocks=2, num_heads=2, ffn_width=64, seq_len=24, batch_size=4, table_size=251, fallback_dim=32,
    curve_windows=2, curve_points=2, held_out_windows=6,
)  # fmt: skip


def make_place(folder):
    """A tokenizer, tokens of training, held-out and other documents, and a bank of the first."""
    byte_bpe([tiny_text(number) for number in range(6)], 320).save(str(folder / "tokenizer.json"))
    for part, numbers in (("training", range(7)), ("held-out", range(20, 22)), ("other", range(30, 32))):
        (folder / part).mkdir()
        for number in numbers:
            (folder / part / f"{number}.txt").write_text(tiny_text(number, sentences=10))
        memgraft.tokenize_folder(folder / part, folder / "tokenizer.json", folder / f"{part}-tokens", eos=0)
    keys = memgraft.mine(memgraft.Corpus.open(folder / "training-tokens"), budget=200)
    donor = tiny_donor(folder / "donor")
    harvest(keys, recipient_tokenizer=folder / "tokenizer.json", donor=donor, taps=(2,), out=folder / "bank")
    return folder


def make_material(place):
    return Material(
        bank=memgraft.Bank.open(place / "bank"),
        train=TokenWindows(memgraft.Corpus.open(place / "training-tokens"), RECIPE.seq_len),
        held_out=TokenWindows(memgraft.Corpus.open(place / "held-out-tokens"), RECIPE.seq_len),
        vocab_size=320,
        eos_id=0,
        tokenizer=place / "tokenizer.json",
    )
