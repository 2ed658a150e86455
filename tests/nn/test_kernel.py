"""The fused kernel, interpreted on the CPU in a process of its own, against the torch path: values and gradients."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("triton")
CASES = pathlib.Path(__file__).with_name("kernel_cases.py")


# The interpreter takes minutes where a card takes milliseconds.
@pytest.mark.slow
@pytest.mark.parametrize("group", ["plain", "edges", "narrow", "chosen", "decoding", "traced", "gradients", "compiled"])
def test_the_kernel_is_the_torch_path(group):
    # Triton reads the variable when it is imported, which another test may have done.
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    found = subprocess.run(
        [sys.executable, str(CASES), group], env=environment, capture_output=True, text=True, timeout=600
    )
    assert found.returncode == 0, found.stdout[-2000:] + found.stderr[-4000:]
    assert found.stdout.split()[-1] == "same"
