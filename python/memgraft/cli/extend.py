"""``memgraft extend``: an overlay with what a bank lacks of a corpus."""

from pathlib import Path
from typing import Annotated

import typer

from memgraft.cli import artifacts, common
from memgraft.cli.mine import parse_budget
from memgraft.errors import ArgumentError


@common.verb
@artifacts.reads_corpora
def run(
    reading: artifacts.Reading,
    bank: Annotated[Path, typer.Argument(help="The base, or several banks: base/,law/.")],
    corpus: Annotated[list[Path], typer.Option("--corpus", help="Token corpus, or text, with what is new.")],
    donor: Annotated[str, typer.Option("--donor", help="The donor the bank was harvested from.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The overlay to be, a bank directory.")],
    budget: Annotated[
        str, typer.Option(help='New keys in all (equal shares), per order as "2=1000,3=500", or "all".')
    ] = "100000",
    orders: Annotated[str | None, typer.Option(help="Lengths of keys; default: the bank's.")] = None,
    min_count: Annotated[int, typer.Option(min=1, help="Fewest occurrences of a key.")] = 2,
    memory: Annotated[str, typer.Option(help="Working memory of the mining.")] = "4GiB",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; default: a card if there is one.")] = None,
    threads: common.ThreadsOption = None,
    json: common.JsonOption = False,
) -> None:
    """Mine what a bank lacks, harvest it with the bank's own settings, and write it as an overlay."""
    from memgraft import Bank

    common.need("torch", "torch")
    common.need("transformers", "transformers")
    from memgraft.harvesting.asked import refuse_donor
    from memgraft.mining.options import parse_bytes

    artifacts.check_folder(out)
    base = Bank.open(bank)
    tokenizer = reading.tokenizer or next(
        (found for found in (base.tokenizer_path, base.path.parent / "tokenizer.json") if found and found.is_file()),
        None,
    )
    if tokenizer is None:
        raise ArgumentError(f"{base.path}: expected a tokenizer.json beside it, found none; give --tokenizer")
    new_keys = parse_budget(budget)
    lengths = None if orders is None else artifacts.parse_ids("orders", orders)
    parse_bytes(memory)
    refuse_donor(donor, base.taps)
    opened = reading.open(corpus, made=base)
    # Torch comes once nothing is left to refuse without it.
    from memgraft.harvesting.extend import harvest_like, mine_lacking

    with common.progress("tokens") as report:
        lacking = mine_lacking(
            base,
            opened,
            new_keys,
            orders=lengths,
            min_count=min_count,
            memory=memory,
            temporary=reading.temporary or out.absolute().parent,
            threads=threads,
            progress=report,
        )
    with common.warnings_told(), common.progress("keys") as report:
        common.keeps(
            f"what is finished is in {out}.partial; the same command goes on from there", Path(f"{out}.partial"), out
        )
        overlay = harvest_like(
            base,
            lacking.keys,
            recipient_tokenizer=tokenizer,
            donor=donor,
            out=out,
            corpus=opened,
            device=device,
            progress=report,
        )
    # Opening both says whether they fit together.
    stack = Bank.open([base.paths, overlay.path])
    common.emit(
        {
            "overlay": out,
            "num_rows": overlay.num_rows,
            "num_rows_by_order": overlay.keys.num_keys_by_order,
            "known_by_order": lacking.known,
            "over_budget_by_order": lacking.over_budget,
            "dropped": dict(overlay.manifest.dropped),
            "fingerprint": overlay.fingerprint,
            "stack": f"{bank},{out}",
            "stack_fingerprint": stack.fingerprint,
        },
        json=json,
        title=f"Overlay {out}",
    )
