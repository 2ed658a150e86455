"""``memgraft keys export``: key set to Parquet."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memgraft.cli import artifacts, common
from memgraft.errors import FingerprintError
from memgraft.system import written_beside

if TYPE_CHECKING:
    from memgraft import KeySet

ROWS = 1 << 20
"""Rows of a row group."""


@common.verb
def run(
    keys: Annotated[Path, typer.Argument(help="Key set (keys.mgk).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Parquet file to write.")],
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", help="tokenizer.json (or its folder): adds a column of text.")
    ] = None,
    threads: common.ThreadsOption = None,
    overwrite: common.OverwriteOption = False,
    json: common.JsonOption = False,
) -> None:
    """Write a key set as Parquet: tokens (list of uint32), count, documents, in row order."""
    import json as jsonlib

    from memgraft import KeySet

    artifacts.check_output(out, overwrite=overwrite, endings=(".parquet", ".pq"))
    common.need("pyarrow", "parquet")
    import pyarrow as pa
    from pyarrow import parquet

    opened = KeySet.open(keys)
    facts = {"vocab_size": opened.vocab_size, "reserved": opened.reserved, "metadata": opened.metadata}
    texts = None if tokenizer is None else decoder_of(tokenizer, opened)
    schema = pa.schema(
        [("tokens", pa.list_(pa.uint32())), ("count", pa.uint64()), ("documents", pa.uint64())]
        + ([] if texts is None else [("text", pa.string())]),
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
            if texts is not None:
                columns.append(pa.array(texts(opened[start:stop])))
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
            report("export", stop, len(opened))
    common.emit(
        {"parquet": out, "num_keys": len(opened), "bytes": out.stat().st_size}, json=json, title=f"Exported {out}"
    )


def decoder_of(tokenizer: Path, keys: "KeySet") -> Callable[[Sequence[Sequence[int]]], list[str]]:
    """What makes texts of the keys.

    Raises:
        FingerprintError: the file is not the one that made the keys' tokens.
    """
    from memgraft.keyed import decoder
    from memgraft.tokenizer import differs_from, facts_of_keys, open_tokenizer

    decode = decoder(tokenizer)
    if difference := differs_from(open_tokenizer(tokenizer), facts_of_keys(keys.metadata)):
        raise FingerprintError(f"{tokenizer}: expected the tokenizer that made the keys: {difference}")
    return decode
