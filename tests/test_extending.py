"""docs/EXTENDING.md names files and tests that are there, two hops from the README."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "EXTENDING.md").read_text(encoding="utf-8")
NAMES = sorted(set(re.findall(r"`([\w./:-]+)`", PAGE)))


def test_the_readme_leads_there():
    assert "(docs/EXTENDING.md)" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_file_is_there():
    files = [name.partition("::")[0] for name in NAMES]
    files = [name for name in files if re.search(r"\.(py|rs|md)$|/$", name)]
    assert len(files) > 30
    inside = [path.relative_to(ROOT) for folder in ("python", "rust", "tests") for path in (ROOT / folder).rglob("*.*")]
    known = {path.name for path in inside}
    # A bare name stands for a file in the folder that its sentence names.
    assert not [name for name in files if not ((ROOT / name).exists() if "/" in name else name in known)]


def test_every_test_is_there():
    tests = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in ROOT.glob("tests/**/*.py")}
    for name in NAMES:
        path, _, test = name.rpartition("::")
        if test.startswith("test_") and not test.endswith(".py"):
            assert any(f"def {test}(" in text for place, text in tests.items() if path in ("", place)), name
