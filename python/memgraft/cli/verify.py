"""``memgraft verify``: every byte of artifacts and corpora."""

from pathlib import Path
from typing import Annotated, Any

import typer

from memgraft.cli import artifacts, common, records
from memgraft.errors import MemgraftError


@common.verb
@artifacts.reads_corpora
def run(
    reading: artifacts.Reading,
    paths: Annotated[list[Path], typer.Argument(help="Anything that memgraft writes, and token corpora.")],
    threads: common.ThreadsOption = None,
    json: common.JsonOption = False,
) -> None:
    """Read artifacts to the last byte and check them; exit code 1 if one is not whole."""
    verified, failed = [], []
    for path in paths:
        try:
            kind = artifacts.kind_of(path)
            if kind == "corpus":
                # The fingerprint reads every token; documents were checked at opening.
                opened = reading.open(path)
                facts = {"path": path, "kind": kind, "fingerprint": opened.fingerprint}
            elif kind in records.RECORDS:
                facts = {"path": path, "kind": kind, "fingerprint": records.verify_record(path, kind)}
            else:
                facts = {"path": path, "kind": kind, "fingerprint": verify_artifact(path, kind, threads)}
        except MemgraftError as error:
            message = common.as_options(str(error))
            failed.append({"path": path, "error": message})
            common.log(f"memgraft: {message}")
        else:
            verified.append(facts)
    if json:
        common.emit({"verified": verified, "failed": failed}, json=True)
    else:
        for facts in verified:
            common.emit({"ok": facts["path"], "kind": facts["kind"], "fingerprint": facts["fingerprint"]}, json=False)
    if failed:
        raise typer.Exit(common.EXIT_FAILED)


def verify_artifact(path: Path, kind: str, threads: int | None) -> str:
    """Verifies a bank, key set or index and returns its fingerprint."""
    from memgraft import Bank, KeySet, NgramIndex

    opened: Any
    if kind == "bank":
        opened = Bank.open(path.parent if path.name == "bank.json" else path)
        with common.progress("bytes") as report:
            opened.verify(threads=threads, progress=lambda done, total: report("verify", done, total))
    else:
        opened = KeySet.open(path) if kind == "keys" else NgramIndex.open(path)
        opened.verify()
    return str(opened.fingerprint)
