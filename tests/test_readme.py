"""The README's Python runs as it stands, in a folder that holds the files it names."""

from pathlib import Path

import numpy as np
import pytest

from pages import Page

README = Page("README.md")


def test_every_python_block_is_run() -> None:
    README.check_all_run("index", "torch")


def test_index_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("corpus.npy", np.random.default_rng(0).zipf(1.3, 20_000).clip(max=999).astype(np.uint16))
    namespace = README.run("index")
    assert (namespace["index"].lookup(np.array(namespace["keys"].key(0), np.uint16))[0][-1]) == 0


OTHERS = ("spaced_bpe", "sentencepiece_bpe", "unigram", "wordpiece")


@pytest.mark.parametrize("family", ["byte_level", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_torch_half(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import memgraft
    import tiny
    from tiny import tiny_donor, tiny_text

    monkeypatch.chdir(tmp_path)
    Path("texts").mkdir()
    for number in range(8):
        Path(f"texts/{number}.txt").write_text(tiny_text(number), encoding="utf-8")
    Path("text.txt").write_text(tiny_text(8), encoding="utf-8")
    tiny_donor(tmp_path / "donor")
    made = None if family == "byte_level" else getattr(tiny, family)([tiny_text(900 + number) for number in range(4)])
    tiny_donor(tmp_path / "recipient", seed=2, tokenizer=made)
    corpus = memgraft.Corpus.open("texts", tokenizer="recipient/tokenizer.json")
    memgraft.mine(corpus, budget=300).save("keys.mgk")

    namespace = README.run("torch")
    assert len(namespace["bank"]) > 0.9 * len(namespace["keys"]), namespace["bank"].manifest.donor
    inputs = namespace["prompt"]
    for name in ("model", "again"):
        namespace[name].eval()
    trained, loaded = (namespace[name](**inputs).logits for name in ("model", "again"))
    assert (trained == loaded).all(), "the graft alone was trained, so that it brings everything back"
