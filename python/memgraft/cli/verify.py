"""``memgraft verify``: every byte of artifacts and corpora."""

from math import isnan
from pathlib import Path
from typing import Annotated, Any

import typer

from memgraft.cli import artifacts, common, records
from memgraft.errors import ArgumentError, MemgraftError


@common.verb
@artifacts.reads_corpora
def run(
    reading: artifacts.Reading,
    paths: Annotated[
        list[Path], typer.Argument(help="Banks, keys, indices, parts, grafts, annotations, experiments, corpora.")
    ],
    sample: Annotated[
        int | None,
        typer.Option("--sample", min=1, help="Recompute so many random rows of a bank with --donor."),
    ] = None,
    donor: Annotated[
        str | None, typer.Option("--donor", help="The donor that the bank was harvested from; 256 rows by default.")
    ] = None,
    corpus: Annotated[
        Path | None, typer.Option("--corpus", help="Of a bank harvested in contexts: what its keys were mined from.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Chooses the rows.")] = 0,
    compute_dtype: Annotated[
        str | None, typer.Option("--compute-dtype", help="Type of the donor's run; default: as the bank records.")
    ] = None,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1; default: a card if any.")] = None,
    threads: common.ThreadsOption = None,
    json: common.JsonOption = False,
) -> None:
    """Read artifacts to the last byte and check them; exit code 1 if one is not whole.

    With --sample, run the donor on random keys of a bank, each alone, and say what differs from its rows, and why.
    """
    if sample is not None and donor is None:
        raise ArgumentError("--sample: expected --donor, the donor that the bank was harvested from; add it")
    if donor is not None:
        options: dict[str, Any] = {
            "sample": sample or 256,
            "seed": seed,
            "compute_dtype": compute_dtype,
            "device": device,
        }
        if corpus is not None:
            options["corpus"] = reading.open(corpus)
        verify_values(paths, donor, reading.tokenizer, options, json)
        return
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
            found = facts["kind"]
            name = "documents" if found == "part" else "of bank" if found in records.RECORDS else "fingerprint"
            common.emit({"ok": facts["path"], "kind": found, name: facts["fingerprint"]}, json=False)
    if failed:
        raise typer.Exit(common.EXIT_FAILED)


def verify_artifact(path: Path, kind: str, threads: int | None) -> str:
    """Verifies a bank, key set or index and returns its fingerprint."""
    from memgraft import Bank, KeySet, NgramIndex

    opened: Any
    if kind == "bank":
        opened = Bank.open(path.parent if path.name == "bank.json" else path)
        with common.progress("bytes") as report:
            opened.verify(threads=threads, progress=report)
    else:
        opened = KeySet.open(path) if kind == "keys" else NgramIndex.open(path)
        opened.verify()
    return str(opened.fingerprint)


def verify_values(paths: list[Path], donor: str, tokenizer: Path | None, options: dict[str, Any], json: bool) -> None:
    """Recomputes rows of banks and prints what was found; leaves with 1 where rows are not what the donor says."""
    from memgraft import Bank

    common.need("torch", "torch")
    common.need("transformers", "transformers")
    from memgraft.harvesting.asked import refuse_donor
    from memgraft.harvesting.devices import check_compute_dtype

    if options["compute_dtype"] is not None:
        check_compute_dtype(options["compute_dtype"])
    refuse_donor(donor)
    for path in paths:
        if artifacts.kind_of(path) != "bank":
            raise ArgumentError(f"{path}: expected a bank, whose rows --donor recomputes; leave --donor out")
    from memgraft.harvesting import verify_rows

    results: list[dict[str, Any]] = []
    for path in paths:
        bank = Bank.open(path.parent if path.name == "bank.json" else path)
        with common.progress("rows") as report:
            check = verify_rows(bank, donor=donor, recipient_tokenizer=tokenizer, progress=report, **options)
        for note in check.notes:
            common.log(f"memgraft: {path}: note: {note}")
        for finding in check.findings:
            common.log(f"memgraft: {path}: {finding.kind}: {finding}")
        facts: dict[str, Any] = {
            "bank": path,
            "ok": check.ok,
            "rows": len(check.rows),
            "differing": check.num_differing,
        }
        error = None if isnan(check.largest_error) else check.largest_error
        facts |= {"largest_error": error, "compute_dtype": check.compute_dtype}
        found = [{"kind": each.kind, "text": str(each), "rows": each.num_rows} for each in check.findings]
        results.append({**facts, "findings": found, "notes": list(check.notes)})
    if json:
        common.emit({"banks": results}, json=True)
    else:
        for facts in results:
            shown = {name: value for name, value in facts.items() if name not in ("findings", "notes")}
            common.emit({**shown, "found": [each["kind"] for each in facts["findings"]]}, json=False)
    if not all(facts["ok"] for facts in results):
        raise typer.Exit(common.EXIT_FAILED)
