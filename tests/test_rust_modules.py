"""The module order of the Rust core, as docs/DESIGN.md states it, against what the files import."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "rust" / "memgraft-core" / "src"
#: The hash of a file maps it, and the file format hashes its sections.
EXCEPTION = ("fingerprint", "format")


def stated_order() -> list[set[str]]:
    """The levels of the order, the highest first."""
    text = (ROOT / "docs" / "DESIGN.md").read_text(encoding="utf-8")
    found = re.search(r"each may call those to its right:\s+`([^`]+)`", text)
    assert found, "docs/DESIGN.md states no order of the Rust modules"
    return [set(re.split(r"[,\s]+", level.strip())) for level in found[1].split(">")]


def imported(text: str) -> set[str]:
    """Top modules of the crate that a file names outside its tests."""
    code = re.sub(r"//[^\n]*", "", text.split("#[cfg(test)]\nmod tests")[0])
    listed = [
        name for names in re.findall(r"crate::\{([^;]*)\};", code) for name in re.findall(r"\b([a-z_]+)\b", names)
    ]
    return {*re.findall(r"\bcrate::([a-z_]+)\b", code), *listed}


def test_modules_of_the_core_call_downwards_alone():
    levels = stated_order()
    rank = {name: place for place, level in enumerate(levels) for name in level}
    modules = {path.stem if path.is_file() else path.name for path in SOURCE.iterdir()} - {"lib"}
    assert modules == set(rank), "docs/DESIGN.md names the modules of the core"
    wrong = []
    for path in SOURCE.rglob("*.rs"):
        own = path.relative_to(SOURCE).parts[0].removesuffix(".rs")
        others = (imported(path.read_text(encoding="utf-8")) & modules) - {own} if own != "lib" else set()
        wrong += [
            f"{path.relative_to(SOURCE)} imports {other}"
            for other in others
            if rank[other] <= rank[own] and (own, other) != EXCEPTION
        ]
    assert not wrong
