"""``memgraft keys import``: Parquet to key set."""

from pathlib import Path
from typing import Annotated, Any

import typer

from memgraft.cli import artifacts, common
from memgraft.errors import ArgumentError, KeySetError


@common.verb
def run(
    table: Annotated[Path, typer.Argument(help="Parquet file with a column tokens, and count and documents if known.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Key set to write, such as keys.mgk.")],
    vocab_size: Annotated[int | None, typer.Option(help="Number of ids; default: what the export recorded.")] = None,
    reserved: Annotated[str | None, typer.Option(help="Tokens that are in no key; default: as recorded.")] = None,
    overwrite: common.OverwriteOption = False,
    json: common.JsonOption = False,
) -> None:
    """Read a key set from Parquet, in any order; rows are sorted by count, ties by key."""
    import json as jsonlib

    import numpy as np

    from memgraft import KeySet

    artifacts.check_output(out, overwrite=overwrite)
    common.need("pyarrow", "parquet")
    parquet = common.need("pyarrow.parquet", "parquet")
    try:
        read = parquet.read_table(table)
    except (ValueError, OSError) as error:
        raise KeySetError(f"{table}: expected a Parquet file, found: {error}") from None
    recorded = (read.schema.metadata or {}).get(b"memgraft.keyset")
    facts: dict[str, Any] = jsonlib.loads(recorded) if recorded else {}
    size = vocab_size if vocab_size is not None else facts.get("vocab_size")
    if size is None:
        raise ArgumentError(f"{table}: expected to learn the vocabulary size, found none recorded; give --vocab-size")
    for name in ("tokens", "count"):
        if name not in read.column_names:
            raise KeySetError(f"{table}: expected a column {name!r}, found {', '.join(read.column_names)}")
    column = read.column("tokens").combine_chunks()
    if not hasattr(column, "offsets") or column.null_count or read.column("count").null_count:
        raise KeySetError(f"{table}: expected lists of token ids and counts without nulls, found {column.type}")
    offsets = column.offsets.to_numpy().astype(np.uint64)
    tokens = column.values.to_numpy(zero_copy_only=False)[int(offsets[0]) : int(offsets[-1])]
    has_documents = "documents" in read.column_names
    keys = KeySet.from_arrays(
        tokens,
        offsets - offsets[0],
        read.column("count").to_numpy(),
        read.column("documents").to_numpy() if has_documents else None,
        vocab_size=size,
        reserved=artifacts.parse_ids("reserved", reserved) if reserved is not None else facts.get("reserved", ()),
        metadata=facts.get("metadata"),
    )
    keys.save(out)
    common.emit(
        {
            "keys": out,
            "num_keys": len(keys),
            "num_keys_by_order": keys.num_keys_by_order,
            "fingerprint": keys.fingerprint,
        },
        json=json,
        title=f"Imported {out}",
    )
