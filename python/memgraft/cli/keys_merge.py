"""``memgraft keys merge``: parts to a key set, or to a part."""

from pathlib import Path
from typing import Annotated, Any

import typer

from memgraft.cli import artifacts, common
from memgraft.cli.choosing import Choosing, chooses_keys, refuse_given, tell
from memgraft.errors import ArgumentError


@common.verb
@artifacts.reads_corpora
@chooses_keys
def run(
    choosing: Choosing,
    reading: artifacts.Reading,
    parts: Annotated[list[Path], typer.Argument(help="Run files that `mine --partial` or `keys merge` has left.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Key set to write, keys.mgk; or a run file, merged.mgr.")],
    orders: Annotated[str | None, typer.Option(help="Lengths of keys; default: those of the parts.")] = None,
    part: Annotated[
        str | None, typer.Option(help='Into a run file: only range I of N of first tokens, as "0/4".')
    ] = None,
    memory: Annotated[str, typer.Option(help="Working memory.")] = "4GiB",
    threads: common.ThreadsOption = None,
    overwrite: common.OverwriteOption = False,
    json: common.JsonOption = False,
) -> None:
    """Merge parts: the keys that mining the whole corpus in one process gives, or one part of several."""
    from memgraft.mining import merge_parts, select_parts
    from memgraft.mining.room import plan_merge, plan_selection

    folder = reading.temporary or out.absolute().parent
    means: dict[str, Any] = {"memory": memory, "temporary": folder, "threads": threads}
    if out.suffix == ".mgr":
        why, way_out = (
            "a run file holds every n-gram",
            "give it when keys are made of the run file, with --out keys.mgk",
        )
        choosing.refuse(why, way_out)
        refuse_given("orders", orders is not None, why, way_out)
        refuse_given("overwrite", overwrite, "a merge of the same parts stays", f"remove {out}")
        common.keeps(
            f"what is merged stays in {out}.partial; the same command goes on from there", Path(f"{out}.partial"), out
        )
        cut = parse_range(part)
        for plan in plan_merge(parts, out, part=cut, **means):
            artifacts.say_room(plan)
        with common.progress() as report:
            merged = merge_parts(parts, out, part=cut, progress=report, **means)
        facts = merged.facts
        common.emit(
            {"part": out, "shards": [shard["rank"] for shard in facts["shards"]], "world": facts["world"]}
            | {"tokens": facts["tokens"], "num_records": facts["num_records"], "bytes": facts["num_bytes"]},
            json=json,
            title=f"Merged {out}",
        )
        return
    if part is not None:
        raise ArgumentError("--part: a range of first tokens goes into a run file; give --out something.mgr")
    artifacts.check_output(out, overwrite=overwrite)
    for plan in plan_selection(parts, **means):
        artifacts.say_room(plan)
    with common.progress("n-grams") as report:
        keys = select_parts(
            parts,
            None if orders is None else artifacts.parse_ids("orders", orders),
            progress=report,
            **means,
            **choosing.arguments(reading),
        )
    keys.save(out)
    corpus = keys.metadata["corpus"]
    artifacts.say_sample(out, keys)
    tell(
        keys,
        out,
        json=json,
        num_tokens=corpus["num_tokens"],
        num_documents=corpus["num_documents"],
        title=f"Merged {out}",
    )


def parse_range(text: str | None) -> tuple[int, int] | None:
    """``"1/4"`` as (1, 4).

    Raises:
        ArgumentError: it is something else.
    """
    if text is None:
        return None
    first, slash, second = text.partition("/")
    if not (slash and first.isdecimal() and second.isdecimal() and int(first) < int(second)):
        raise ArgumentError(f'--part: expected range I of N as "0/4", got {text!r}')
    return int(first), int(second)
