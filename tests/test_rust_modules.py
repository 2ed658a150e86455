"""The module order of the Rust core, as docs/DESIGN.md states it, against what the files import."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "rust" / "memgraft-core" / "src"
FOLDERS = [
    "",
    "automaton",
    "batch",
    "canon",
    "corpus",
    "format",
    "index",
    "keyset",
    "mining",
    "mining/runs",
    "mining/splice",
    "stack",
    "values",
]
"""Folders with an order of their own; "" is the crate."""


def stated_order(folder: str) -> list[set[str]]:
    """The levels of the order of a folder's modules, the highest first."""
    text = (ROOT / "docs" / "DESIGN.md").read_text(encoding="utf-8")
    found = re.search(rf"^\| `{folder or 'memgraft-core'}` \| `([^`]+)`", text, re.MULTILINE)
    assert found, f"docs/DESIGN.md states no order of the modules of {folder or 'the core'}"
    return [set(re.split(r"[,\s]+", level.strip())) for level in found[1].split(">")]


def code(path: Path) -> str:
    """A file without its comments and tests."""
    text = re.sub(r"//[^\n]*", "", path.read_text(encoding="utf-8"))
    text = re.sub(r"#\[cfg\(test\)\]\n(#\[path[^\n]*\n)?mod \w+;", "", text)
    return re.split(r"#\[cfg\((?:all\()?test\b[^\n]*\n(?=mod )", text)[0]


def leaves(tree: str) -> Iterator[list[str]]:
    """The paths of one ``use`` tree, as lists of names."""
    head, brace, inner = tree.strip().partition("{")
    names = [name for name in re.split(r"::", re.split(r"\s+as\s+", head.strip())[0].strip()) if name]
    if not brace:
        yield names
        return
    depth, start = 0, 0
    inner = inner.rstrip().removesuffix("}") + ","
    for at, letter in enumerate(inner):
        depth += (letter == "{") - (letter == "}")
        if letter == "," and depth == 0:
            if inner[start:at].strip():
                yield from (names + rest for rest in leaves(inner[start:at]))
            start = at + 1


def module(path: Path) -> tuple[str, ...]:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return parts[:-1] if parts[-1] in {"mod", "lib"} else parts


MODULES = {module(path): path for path in SOURCE.rglob("*.rs") if not path.stem.endswith("tests")}
EXPORTS = {
    own: {
        names[-1]: names
        for found in re.findall(r"\bpub(?:\(\w+\))?\s+use\s([^;]+);", code(path))
        for names in leaves(found)
    }
    for own, path in MODULES.items()
    if path.stem in {"mod", "lib"}
}
"""Names that a folder's mod.rs exports from its files."""


def resolve(own: tuple[str, ...], names: list[str]) -> tuple[str, ...] | None:
    """The module that a path written in module ``own`` leads to, through what mod.rs exports."""
    base, rest = own, list(names)
    if rest[0] == "crate":
        base, rest = (), rest[1:]
    elif rest[0] in {"super", "self"}:
        while rest and rest[0] in {"super", "self"}:
            base = base[: -1 if rest[0] == "super" else None]
            rest = rest[1:]
    elif (*own, rest[0]) not in MODULES:
        return None
    while rest and (*base, rest[0]) in MODULES:
        base, rest = (*base, rest[0]), rest[1:]
    exported = EXPORTS.get(base, {}).get(rest[0]) if rest else None
    return resolve(base, exported + rest[1:]) if exported else base


def uses(own: tuple[str, ...]) -> set[tuple[str, ...]]:
    """The other modules of the crate that a module's code names; what mod.rs exports does not count."""
    text = re.sub(r"\bpub(?:\(\w+\))?\s+use\s[^;]+;", "", code(MODULES[own]))
    paths = [names for found in re.findall(r"\buse\s([^;]+);", text) for names in leaves(found)]
    text = re.sub(r"\buse\s[^;]+;", "", text)
    paths += [names.split("::") for names in re.findall(r"\b(?:crate|super)(?:::\w+)+", text)]
    return {found for names in paths if (found := resolve(own, names)) is not None} - {own, ()}


@pytest.mark.parametrize("folder", FOLDERS)
def test_modules_of_the_core_call_downwards_alone(folder):
    levels = stated_order(folder)
    rank = {name: place for place, level in enumerate(levels) for name in level}
    above = tuple(folder.split("/")) if folder else ()
    depth = len(above)
    inside = [own for own in MODULES if own[:depth] == above and len(own) > depth]
    assert {own[depth] for own in inside} == set(rank), "docs/DESIGN.md names the modules of the core, and no others"
    wrong = [
        f"{'::'.join(own)} uses {'::'.join(other)}"
        for own in inside
        for other in uses(own)
        if other[:depth] == above
        and (other == above or (other[depth] != own[depth] and rank[other[depth]] <= rank[own[depth]]))
    ]
    # A folder's files may use what its mod.rs defines, if that uses none of them.
    if above and not any(other[:depth] == above for other in uses(above)):
        wrong = [line for line in wrong if not line.endswith(f" uses {'::'.join(above)}")]
    assert not wrong


def test_all_folders_of_the_core_have_an_order():
    folders = {str(path.relative_to(SOURCE)) for path in SOURCE.rglob("*") if path.is_dir()}
    assert folders == set(FOLDERS) - {""}


def test_unsafe_code_lies_in_the_files_that_the_design_lists():
    text = (ROOT / "docs" / "DESIGN.md").read_text(encoding="utf-8")
    found = re.search(r"^`unsafe` is denied [^`]*`tests/test_rust_modules.py`\):\n`([^`]+)`", text, re.MULTILINE)
    assert found, "docs/DESIGN.md lists the files with unsafe code"
    allowed = {
        "/".join(own) for own, path in MODULES.items() if "#![allow(unsafe_code)]" in path.read_text(encoding="utf-8")
    }
    assert allowed == set(found[1].split(", "))
    assert 'unsafe_code = "deny"' in (ROOT / "Cargo.toml").read_text(encoding="utf-8")


def test_paths_are_read_as_the_compiler_does():
    assert list(leaves("super::{a::{B, C as D}, e::F}, ".rstrip(", "))) == [
        ["super", "a", "B"],
        ["super", "a", "C"],
        ["super", "e", "F"],
    ]
    assert resolve(("batch", "lanes"), ["crate", "automaton", "View"]) == ("automaton", "view")
    assert ("format", "store") in uses(("automaton", "table"))
    assert ("automaton", "words") in uses(("automaton", "probe"))
