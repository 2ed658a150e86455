"""What every group of the Python side is told: one JSON object on stdin, one on stdout."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How large and how long."""

    corpus: str
    """Stem of the token corpus (Megatron, uint16)."""
    keys: str
    """Key set file."""
    index: str
    """Index file of those keys."""
    scratch: str
    """Directory for banks; emptied by the caller."""
    binary: str
    """The bench binary."""
    rounds: int = 5
    quick: bool = False

    @property
    def scratch_path(self) -> Path:
        return Path(self.scratch)


def main(group: Callable[[Settings], dict[str, Any]]) -> None:
    """Run ``group`` with the settings on stdin."""
    given = json.load(sys.stdin)
    names = {field.name for field in fields(Settings)}
    json.dump(group(Settings(**{name: value for name, value in given.items() if name in names})), sys.stdout)
