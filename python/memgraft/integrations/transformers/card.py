"""The model card of a saved graft."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_CARD = """---
library_name: memgraft
tags:
- memory-grafting
---

# Graft `{name}`

Recipient-side weights of a memory graft: at every position of the recipient the longest n-gram that a bank stores is
looked up, and its frozen donor value is projected, {gated} to the {into} block(s) {sites}.

| | |
|---|---|
| recipient | `{model_type}`, width {hidden_dim}, vocabulary {vocab_size} |
| bank | {num_rows:,} rows, value width {value_dim}, donor depths {taps} |
| bank fingerprint | `{fingerprint}` |
| value space | `{space}` |
| trained on bank | `{trained_on}` |
| control | {control} |
| memgraft | {memgraft_version} |

The folder does not hold the bank. Loading refuses any other than the one above, unless `rows="any"` asks for another of
the same value space.

```python
from memgraft.torch import load_graft
from memgraft.bank import Bank

model = load_graft(recipient, "path/to/this/folder", bank=Bank.open("path/to/bank"))
```

## Config

```json
{config}
```
"""


def model_card(manifest: Mapping[str, Any]) -> str:
    """Markdown with front matter, ready to push."""
    config, bank, recipient = manifest["config"], manifest["bank"], manifest["recipient"]
    control = config["control"]
    return _CARD.format(
        name=manifest["name"],
        sites=", ".join(map(str, config["sites"])),
        gated="scaled and added" if config["gate"] == "none" else "gated and added",
        into="values of the attention of" if config["into"] == "values" else "residual stream before",
        model_type=recipient["model_type"],
        hidden_dim=recipient["hidden_dim"],
        vocab_size=recipient["vocab_size"],
        num_rows=bank["num_rows"],
        value_dim=bank["value_dim"],
        taps=", ".join(map(str, bank["taps"])),
        fingerprint=bank["fingerprint"],
        space=bank["space"],
        trained_on=bank["trained_on"],
        control="none: the bank's own rows" if control is None else f"**`{control}`**: not the bank's own rows",
        memgraft_version=manifest["memgraft_version"],
        config=json.dumps(config, indent=2),
    )
