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
