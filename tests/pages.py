"""Pages whose Python runs as it stands."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"<!-- test(?:: (?P<name>\w+))? -->\n```python\n(?P<code>.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Page:
    """A page of the documentation; ``path`` as seen from the repository's root."""

    path: str
    text: str = field(init=False, repr=False)
    blocks: dict[str, str] = field(init=False, repr=False)
    """Name, or number if it has none, to code."""

    def __post_init__(self) -> None:
        text = (ROOT / self.path).read_text(encoding="utf-8")
        blocks = {match["name"] or str(number): match["code"] for number, match in enumerate(BLOCK.finditer(text))}
        object.__setattr__(self, "text", text)
        object.__setattr__(self, "blocks", blocks)

    def check_all_run(self, *names: str) -> None:
        """Every Python block of the page is one of the marked ones, and these are ``names``."""
        assert self.text.count("```python") == len(self.blocks)
        assert set(self.blocks) == set(names)

    def run(self, name: str, namespace: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run a block in the current folder, after others if it gets their ``namespace``."""
        namespace = {} if namespace is None else namespace
        namespace.setdefault("__name__", "__main__")
        exec(compile(self.blocks[name], f"{self.path} [{name}]", "exec"), namespace)
        return namespace
