"""``memgraft mine``: corpus to key set, or to a part of one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memgraft.cli import artifacts, common
from memgraft.cli.choosing import Choosing, chooses_keys, parse_budget, refuse_given, tell
from memgraft.errors import ArgumentError

if TYPE_CHECKING:
    from memgraft import Corpus

__all__ = ["parse_budget", "run"]


@common.verb
@artifacts.reads_corpora
@chooses_keys
def run(
    choosing: Choosing,
    reading: artifacts.Reading,
    corpus: artifacts.CorpusPaths,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Key set to write, keys.mgk; with --partial a run file, part.mgr.")
    ],
    orders: Annotated[str, typer.Option(help="Lengths of keys, 1 to 16, as 2,3,4 or 2-4.")] = "2,3,4",
    memory: Annotated[str, typer.Option(help="Working memory.")] = "4GiB",
    sketch: Annotated[
        bool, typer.Option("--sketch", help="Spill no n-gram seen once: one pass more, less temporary data.")
    ] = False,
    reserved: Annotated[str | None, typer.Option(help="Further tokens that are in no key: 0,1,2.")] = None,
    vocab_size: Annotated[int | None, typer.Option(help="Number of ids; default: the tokenizer's.")] = None,
    held_out: Annotated[
        float | None, typer.Option(help="Share of documents to hold out; keys come from the others alone.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the choice of held-out documents.")] = 0,
    partial: Annotated[
        bool, typer.Option("--partial", help="Leave the sorted n-grams of one rank in a run file, for `keys merge`.")
    ] = False,
    rank: Annotated[int, typer.Option(min=0, help="With --partial: which part of the corpus, from 0.")] = 0,
    world: Annotated[int, typer.Option(min=1, help="With --partial: parts that the corpus is cut into.")] = 1,
    threads: common.ThreadsOption = None,
    overwrite: common.OverwriteOption = False,
    json: common.JsonOption = False,
) -> None:
    """Mine the most frequent n-grams of a token corpus, with exact counts."""
    from memgraft.corpus import write_sample
    from memgraft.mining import mine

    if partial:
        choosing.refuse("a part holds every n-gram of its documents", "give it to `memgraft keys merge`")
        refuse_given("overwrite", overwrite, "a part of the same documents stays", f"remove {out}")
    else:
        for name, value in (("rank", rank != 0), ("world", world != 1)):
            refuse_given(name, value, "it says which part of the corpus to mine", "give --partial too")
    if partial and sketch:
        raise ArgumentError("--sketch: expected without --partial, because one rank cannot tell what occurs once")
    opened = reading.open(corpus)
    if held_out is not None:
        opened, _ = opened.split(held_out=held_out, seed=seed)
    means: dict[str, Any] = {
        "memory": memory,
        "reserved": artifacts.parse_ids("reserved", reserved),
        "vocab_size": vocab_size,
        "threads": threads,
    }
    if means["reserved"]:
        # "100,007" is two ids.
        common.log(f"no key holds these tokens: {' '.join(map(str, means['reserved']))}")
    wanted = artifacts.parse_ids("orders", orders)
    if partial:
        _part(opened, out, wanted, rank, world, json=json, **means)
        return
    artifacts.check_output(out, overwrite=overwrite)
    folder = reading.temporary or out.absolute().parent
    _say_spill(opened, wanted, sketch=sketch, temporary=folder, **means)
    with common.progress("tokens") as report:
        # Keys are saved before the sample is taken: Ctrl-C then loses no mining.
        keys = mine(
            opened,
            wanted,
            sketch=sketch,
            temporary=folder,
            sample=False,
            progress=report,
            **means,
            **choosing.arguments(reading),
        )
        keys.save(out)
        write_sample(opened, out, progress=report)
    tell(
        keys,
        out,
        json=json,
        num_tokens=opened.num_tokens,
        num_documents=opened.num_documents,
        title=f"Mined {out}",
    )


def _say_spill(corpus: "Corpus", orders: list[int], *, sketch: bool, **means: Any) -> None:
    from memgraft.mining import plan_spill

    if not artifacts.worth_saying(plan_spill(corpus, orders, sketch=sketch, **means)):
        return
    # Only then, since it sorts a sample for each order.
    spill = plan_spill(corpus, orders, sketch=sketch, by_order=True, **means)
    shorter = [f"{spill.by_order[order]:.1f} up to order {order}" for order in sorted(set(orders))[:-1]]
    less = "less what occurs once" if sketch else "--sketch takes less"
    artifacts.say_room(spill, "".join(f", {rate}" for rate in shorter) + f"; {less}")


def _part(corpus: "Corpus", out: Path, orders: list[int], rank: int, world: int, *, json: bool, **means: Any) -> None:
    from memgraft.mining import mine_part
    from memgraft.mining.room import plan_part

    common.keeps(
        f"finished blocks stay in {out}.partial; the same command goes on from there", Path(f"{out}.partial"), out
    )
    artifacts.say_room(plan_part(corpus, out, orders, rank=rank, world=world, **means))
    with common.progress("tokens") as report:
        part = mine_part(corpus, out, orders, rank=rank, world=world, progress=report, **means)
    shard = part.facts["shards"][0]
    common.emit(
        {"part": out, "rank": rank, "world": world, "num_records": part.facts["num_records"]}
        | {"bytes": part.facts["num_bytes"], "num_tokens": shard["num_tokens"], "shard": shard["fingerprint"]},
        json=json,
        title=f"Mined part {rank} of {world}",
    )
