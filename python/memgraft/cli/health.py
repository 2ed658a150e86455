"""The health of a bank as a table for the terminal."""

import sys
from collections.abc import Mapping
from typing import Any


def print_health(groups: Mapping[str, Mapping[str, Any]], whole: Mapping[str, Any]) -> None:
    """Prints one line for each group of rows, and one for all: `bank_health` and `whole_health` of a bank."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="health", title_justify="left", box=None, pad_edge=False)
    table.add_column("read as", no_wrap=True)
    for name in ("rows", "of counts", "cosine", "twins", "norm", "rank", "outliers"):
        table.add_column(name, justify="right")
    for name, group in {**groups, "all": {"share_of_counts": 1.0, **whole}}.items():
        table.add_row(
            name,
            str(group["rows"]),
            f"{group['share_of_counts']:.1%}",
            f"{group['mean_cosine']:.3f}",
            f"{group['rows_with_twin']:.1%}",
            f"{group['median_norm']:.4g}",
            f"{group['effective_rank']:.0f}",
            f"{group['outlier_channels']} ({group['outlier_energy']:.0%})",
        )
    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(table)
