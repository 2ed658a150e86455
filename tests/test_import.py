"""What `import memgraft` costs: numpy and nothing else."""

import ast
import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

PROBE = """
import json, sys
before = set(sys.modules)
import memgraft
{use}
roots = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(json.dumps(sorted(root for root in roots if root not in sys.stdlib_module_names and not root.startswith("_"))))
"""


@pytest.mark.parametrize(
    "use",
    [
        "",
        "memgraft.KeySet.from_keys([(1, 2)], vocab_size=4)",
        "hasattr(memgraft, 'nothing')",
        "memgraft.NgramIndex.build(memgraft.KeySet.from_keys([(1, 2)], vocab_size=4)).lookup([0, 1, 2])",
    ],
    ids=["import", "keyset", "no name", "index"],
)
def test_import_needs_numpy_alone(use: str) -> None:
    loaded = subprocess.run([sys.executable, "-c", PROBE.format(use=use)], check=True, capture_output=True, text=True)
    assert json.loads(loaded.stdout) == ["memgraft", "numpy"]


def test_names_of_the_torch_half_say_where_they_are() -> None:
    import memgraft

    for name in ("graft", "GraftCollator", "load_graft"):
        with pytest.raises(ImportError, match=rf"{name} is in the torch half: from memgraft.torch import {name}"):
            exec(f"from memgraft import {name}")
    assert not hasattr(memgraft, "grafft")
    assert "harvest" in dir(memgraft)
    assert set(dir(memgraft)) == set(memgraft.__all__)


def test_nothing_newer_than_the_oldest_python_is_imported_at_run_time() -> None:
    import memgraft

    newer = {"typing": {"Self", "Never", "LiteralString", "NotRequired", "Unpack", "assert_never", "override"},
             "enum": {"StrEnum"}, "datetime": {"UTC"}, "itertools": {"batched"}, "contextlib": {"chdir"}}  # fmt: skip
    found = []
    for path in Path(memgraft.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text())
        typing_only = [
            node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        ]
        skipped = {id(inner) for node in typing_only for inner in ast.walk(node)}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and id(node) not in skipped:
                found += [
                    (path.name, name.name) for name in node.names if name.name in newer.get(node.module or "", ())
                ]
    assert found == []


def test_what_studies_benches_and_scripts_import_is_there():
    root = Path(__file__).parents[1]
    paths = [path for folder in ("docs", "benches", "scripts") for path in (root / folder).rglob("*.py")]
    asked = {
        (node.module, alias.name, path)
        for path in paths
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "memgraft"
        for alias in node.names
    }
    assert len(asked) > 100

    def there(module, name):
        return (
            hasattr(importlib.import_module(module), name) or importlib.util.find_spec(f"{module}.{name}") is not None
        )

    assert [(module, name, path) for module, name, path in asked if not there(module, name)] == []
