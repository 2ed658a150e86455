"""docs/DESIGN.md names the modules that there are, in the order that is checked."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "DESIGN.md").read_text(encoding="utf-8")
PACKAGE = ROOT / "python" / "memgraft"
BINDING = ROOT / "rust" / "memgraft-py" / "src"


def levels(order: str, beside: str) -> list[set[str]]:
    """``a > b | c`` as sets of names, the highest first."""
    return [{name.strip() for name in level.split(beside)} for level in order.split(">")]


def order_of_the_package() -> list[set[str]]:
    found = re.search(r"```\n(cli > .*?)```", PAGE, re.DOTALL)
    assert found
    return levels(found[1], "|")


def test_the_order_of_the_package_is_the_contract():
    lines = re.findall(
        r'^ +"(\(memgraft\.\w+\).*)",$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE
    )
    contract = [set(re.findall(r"\(memgraft\.(\w+)\)", line)) for line in lines]
    assert len(contract) > 10
    assert order_of_the_package() == contract


def test_every_module_of_the_package_is_named():
    stated = {
        name: set(files.split(", ")) for name, files in re.findall(r"^\| `([\w/]+)` \| [^|]+ \| `(.+)` \|$", PAGE, re.M)
    }
    there: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        if not path.stem.startswith("__"):
            there.setdefault(path.parent.relative_to(PACKAGE).as_posix(), set()).add(path.stem)
    alone = there.pop(".")
    assert stated == there
    assert set.union(*order_of_the_package()) == alone | {name for name in there if "/" not in name}


def test_the_modules_of_the_binding_call_downwards_alone():
    found = re.search(r"^\| `memgraft-py` \| `([^`]+)`", PAGE, re.MULTILINE)
    assert found
    rank = {name: place for place, level in enumerate(levels(found[1], ",")) for name in level}
    files = {path.stem: path.read_text(encoding="utf-8") for path in BINDING.glob("*.rs")}
    assert set(rank) == set(files)
    for name, code in files.items():
        assert all(rank[name] < rank[other] for other in re.findall(r"\bcrate::(\w+)", code)), name


def test_constants_and_fields_are_described_by_a_string_below_them():
    # CONTRIBUTING's one dialect; the other, comments that begin with a colon, stands nowhere.
    other = re.compile(r"^\s*#" + ":", re.MULTILINE)
    paths = [path for folder in ("python", "tests", "benches", "docs") for path in (ROOT / folder).rglob("*.py")]
    assert len(paths) > 300
    assert not [str(path) for path in paths if other.search(path.read_text(encoding="utf-8"))]
