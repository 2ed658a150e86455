"""``memgraft keys export``: key set to Parquet."""

from pathlib import Path
from typing import Annotated

import typer

from memgraft.cli import artifacts, common
from memgraft.system import written_beside

#: Rows of a row group.
ROWS = 1 << 20


@common.verb
def run(
    keys: Annotated[Path, typer.Argument(help="Key set (keys.mgk).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Parquet file to write.")],
    overwrite: common.OverwriteOption = False,
    json: common.JsonOption = False,
) -> None:
    """Write a key set as Parquet: tokens (list of uint32), count, documents, in row order."""
    import json as jsonlib

    from memgraft import KeySet

    artifacts.check_output(out, overwrite=overwrite)
    pa = common.need("pyarrow", "parquet")
    parquet = common.need("pyarrow.parquet", "parquet")
    opened = KeySet.open(keys)
    facts = {"vocab_size": opened.vocab_size, "reserved": opened.reserved, "metadata": opened.metadata}
    schema = pa.schema(
        [("tokens", pa.list_(pa.uint32())), ("count", pa.uint64()), ("documents", pa.uint64())],
        metadata={b"memgraft.keyset": jsonlib.dumps(facts).encode()},
    )
    with (
        written_beside(out) as temporary,
        common.progress("keys") as report,
        parquet.ParquetWriter(temporary, schema, compression="zstd") as writer,
    ):
        for start in range(0, len(opened), ROWS):
            stop = min(start + ROWS, len(opened))
            part = opened.arrays(start, stop)
            tokens = pa.ListArray.from_arrays(pa.array(part.offsets.astype("int32")), pa.array(part.tokens))
            columns = [tokens, pa.array(part.counts), pa.array(part.documents)]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
            report("export", stop, len(opened))
    common.emit(
        {"parquet": out, "num_keys": len(opened), "bytes": out.stat().st_size}, json=json, title=f"Exported {out}"
    )
