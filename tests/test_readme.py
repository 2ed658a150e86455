"""The README's Python runs as it stands, in a folder that holds the files it names."""

import re
from pathlib import Path

import numpy as np
import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"<!-- test: (?P<name>\w+) -->\n```python\n(?P<code>.*?)```", re.DOTALL)
BLOCKS = {match["name"]: match["code"] for match in BLOCK.finditer(README.read_text(encoding="utf-8"))}


def run(name: str) -> dict[str, object]:
    namespace: dict[str, object] = {}
    exec(compile(BLOCKS[name], f"README.md [{name}]", "exec"), namespace)
    return namespace


def test_every_python_block_is_run() -> None:
    assert README.read_text(encoding="utf-8").count("```python") == len(BLOCKS) == 2


def test_index_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("corpus.npy", np.random.default_rng(0).zipf(1.3, 20_000).clip(max=999).astype(np.uint16))
    namespace = run("index")
    assert (namespace["index"].lookup(np.array(namespace["keys"].key(0), np.uint16))[0][-1]) == 0  # type: ignore[attr-defined]


def test_torch_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import memgraft
    from tiny import tiny_donor, tiny_text

    monkeypatch.chdir(tmp_path)
    Path("texts").mkdir()
    for number in range(8):
        Path(f"texts/{number}.txt").write_text(tiny_text(number), encoding="utf-8")
    Path("text.txt").write_text(tiny_text(8), encoding="utf-8")
    tiny_donor(tmp_path / "donor")
    tiny_donor(tmp_path / "recipient", seed=2)
    corpus = memgraft.Corpus.open("texts", tokenizer="recipient/tokenizer.json")
    memgraft.mine(corpus, budget=300).save("keys.mgk")

    namespace = run("torch")
    inputs = namespace["prompt"]
    for name in ("model", "again"):
        namespace[name].eval()  # type: ignore[attr-defined]
    trained, loaded = (namespace[name](**inputs).logits for name in ("model", "again"))  # type: ignore[operator]
    assert not (trained == loaded).all(), "the Trainer also trained the recipient, which the graft does not hold"
