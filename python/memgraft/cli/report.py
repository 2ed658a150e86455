"""``memgraft report``: one page about a bank, its coverage, and an experiment."""

from pathlib import Path
from typing import Annotated, Any

import typer

from memgraft.cli.artifacts import Reading, check_folder, check_output, reads_corpora
from memgraft.cli.common import JsonOption, OverwriteOption, ThreadsOption, emit, need, progress, verb


@verb
@reads_corpora
def run(
    reading: Reading,
    bank: Annotated[Path, typer.Argument(help="The bank directory.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where report.html, report.md and report.json go.")],
    coverage_of: Annotated[
        list[Path] | None,
        typer.Option(
            "--coverage",
            help="Corpora whose coverage is reported, or what 'memgraft coverage --json' said; may be repeated.",
        ),
    ] = None,
    experiment: Annotated[
        Path | None, typer.Option("--experiment", help="The directory of 'memgraft train', with its results.json.")
    ] = None,
    title: Annotated[str, typer.Option(help="The page's title.")] = "memgraft report",
    threads: ThreadsOption = None,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
) -> None:
    """Write report.html, one self-contained page, report.md, its words and tables, and report.json, the facts."""
    import json as jsonlib
    import shlex
    import sys

    from memgraft.bank import Bank
    from memgraft.errors import FingerprintError, FormatError, StorageError
    from memgraft.mining import coverage

    need("matplotlib", "report")
    from memgraft.report import REPORT_HTML, bank_facts, build_facts, provenance, write_report

    check_folder(out)
    if (out / REPORT_HTML).exists():
        check_output(out / REPORT_HTML, overwrite=overwrite)
    opened = Bank.open(bank)
    results = None
    if experiment is not None:
        path = experiment / "results.json" if experiment.is_dir() else experiment
        try:
            results = jsonlib.loads(path.read_text())
            trained_on = results["settings"]["bank"]
        except FileNotFoundError:
            raise StorageError(
                f"{path}: not found: expected what 'memgraft train' leaves when its first arm is done; run it again"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise FormatError(f"{path}: expected the results of 'memgraft train', found: {error}") from None
        if trained_on != opened.fingerprint:
            raise FingerprintError(
                f"{path}: the experiment used bank {trained_on}, {bank} is {opened.fingerprint}; name the bank it used"
            )
    covered: dict[str, dict[str, Any]] = {}
    for path in coverage_of or []:
        if path.suffix == ".json" and path.is_file():
            covered[path.stem] = _counted(path)
            continue
        corpus = reading.open(path, made=opened)
        with progress("tokens") as shown:
            covered[str(path)] = dict(coverage(opened, corpus, progress=shown))
    facts = build_facts(
        bank=bank_facts(opened),
        coverage=covered or None,
        experiment=results,
        material=provenance(opened, results, [shlex.join(["memgraft", *sys.argv[1:]])]),
        title=title,
        subtitle=str(bank),
    )
    report_json, report_html = write_report(out, facts)
    emit({"report": str(report_html), "facts": str(report_json)}, json=json)


def _counted(path: Path) -> dict[str, Any]:
    """What ``memgraft coverage --json`` has written to a file."""
    import json

    from memgraft.errors import FormatError

    try:
        facts: dict[str, Any] = json.loads(path.read_text())
        streams = [facts, *facts.get("domains", {}).values()]
        whole = all(isinstance(stream["positions"], int) and stream["hits"].items() is not None for stream in streams)
        if whole and isinstance(facts["misses"], int) and isinstance(facts["unique_rows"], int):
            return facts
        raise ValueError("no whole numbers")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(
            f"{path}: expected what 'memgraft coverage --json' writes, found: {error}; give the corpus itself"
        ) from None
