"""``memgraft build``: key set to index."""

from pathlib import Path
from typing import Annotated

import typer

from memgraft.cli import artifacts, common


@common.verb
def run(
    keys: Annotated[Path, typer.Argument(help="Key set (keys.mgk).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Index to write, such as index.mgi.")],
    threads: common.ThreadsOption = None,
    overwrite: common.OverwriteOption = False,
    json: common.JsonOption = False,
) -> None:
    """Build the longest-match index of a key set."""
    import time

    from memgraft import KeySet, NgramIndex

    artifacts.check_output(out, overwrite=overwrite)
    opened = KeySet.open(keys)
    start = time.perf_counter()
    index = NgramIndex.build(opened)
    seconds = time.perf_counter() - start
    index.save(out)
    common.emit(
        {
            "index": out,
            "num_keys": len(index),
            "num_keys_by_order": index.num_keys_by_order,
            "bytes": out.stat().st_size,
            "bytes_per_key": out.stat().st_size / max(len(index), 1),
            "seconds": seconds,
            "keyset": index.keyset_fingerprint,
            "fingerprint": index.fingerprint,
        },
        json=json,
        title=f"Built {out}",
    )
