"""What `import memgraft` costs: numpy and nothing else."""

import json
import subprocess
import sys

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
        "memgraft.NgramIndex.build(memgraft.KeySet.from_keys([(1, 2)], vocab_size=4)).lookup([0, 1, 2])",
    ],
    ids=["import", "keyset", "index"],
)
def test_import_needs_numpy_alone(use: str) -> None:
    loaded = subprocess.run([sys.executable, "-c", PROBE.format(use=use)], check=True, capture_output=True, text=True)
    assert json.loads(loaded.stdout) == ["memgraft", "numpy"]
