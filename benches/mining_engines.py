"""DuckDB and Polars count the n-grams of a token corpus: occurrences and documents of those that occur twice.

They get the better deal: the table that they read has every n-gram's tokens in columns already, and they keep nothing
but the number of frequent keys by order.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import memgraft

ROWS = 1 << 20
"""Rows of the table written at a time."""


def write_table(path: str, out: Path, max_order: int) -> Path:
    """A row for each position: its document, its token and those behind it, null past the end of the document."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    corpus = memgraft.Corpus.open(path)
    starts = np.append(corpus.document_starts, corpus.num_tokens).astype(np.int64)
    names = ["document", *(f"t{lag}" for lag in range(max_order))]
    schema = pa.schema([(name, pa.uint32()) for name in names])
    with pq.ParquetWriter(out, schema) as writer:
        for first in range(0, corpus.num_tokens, ROWS):
            last = min(first + ROWS, corpus.num_tokens)
            tokens = corpus.tokens(first, min(last + max_order, corpus.num_tokens))
            places = np.arange(first, last)
            documents = np.searchsorted(starts, places, side="right") - 1
            # A delimiter is in no key.
            ends = starts[documents + 1]
            if corpus.eos_id is not None:
                cut = np.append(np.flatnonzero(tokens == corpus.eos_id) + first, corpus.num_tokens)
                ends = np.minimum(ends, cut[np.searchsorted(cut, places)])
            columns = [pa.array(documents.astype(np.uint32))]
            for lag in range(max_order):
                inside = places + lag < ends
                values = tokens[np.minimum(places + lag - first, len(tokens) - 1)]
                columns.append(pa.array(values, mask=~inside))
            writer.write_table(pa.table(columns, schema=schema))
    return out


def count(name: str, table: str, orders: list[int], scratch: str, memory: int) -> dict[str, Any]:
    """The number of n-grams of each order that occur twice, as the engine counts; it spills into ``scratch``."""
    try:
        return {"frequent": {str(order): ENGINES[name](table, order, scratch, memory) for order in orders}}
    except Exception as error:
        # DuckDB has an error of its own for it.
        if isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__:
            return {"out_of_memory": memory}
        raise


def _duckdb(table: str, order: int, scratch: str, memory: int) -> int:
    import duckdb

    names = ", ".join(f"t{lag}" for lag in range(order))
    # A part of the memory is for what DuckDB does not count; beyond its limit it spills.
    config = {"temp_directory": scratch, "preserve_insertion_order": False, "memory_limit": f"{memory // 10 * 9}B"}
    connection = duckdb.connect(config=config)
    found = connection.execute(
        f"""
        SELECT count(*), sum(occurrences), sum(documents) FROM (
            SELECT {names}, sum(n) AS occurrences, count(*) AS documents
            FROM (SELECT {names}, document, count(*) AS n FROM '{table}' WHERE t{order - 1} IS NOT NULL GROUP BY ALL)
            GROUP BY {names} HAVING sum(n) > 1
        )
        """
    ).fetchone()
    assert found is not None
    return int(found[0])


def _polars(table: str, order: int, scratch: str, memory: int) -> int:
    os.environ["POLARS_TEMP_DIR"] = scratch
    import polars

    names = [f"t{lag}" for lag in range(order)]
    grams = polars.scan_parquet(table).filter(polars.col(names[-1]).is_not_null()).select("document", *names)
    by_document = grams.group_by(*names, "document").agg(polars.len().alias("n"))
    keys = by_document.group_by(names).agg(polars.col("n").sum().alias("count"), polars.len().alias("documents"))
    frequent = keys.filter(polars.col("count") > 1)
    asked = frequent.select(polars.len(), polars.col("count").sum(), polars.col("documents").sum())
    return int(asked.collect(engine="streaming").item(0, 0))


ENGINES: dict[str, Callable[[str, int, str, int], int]] = {"duckdb": _duckdb, "polars": _polars}
