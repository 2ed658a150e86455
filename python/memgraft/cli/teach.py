"""``memgraft teach``: statements to an overlay that makes a grafted model know them."""

from pathlib import Path
from typing import Annotated, Any

import typer

from memgraft.cli import artifacts, common, records
from memgraft.errors import ArgumentError


@common.verb
@artifacts.reads_corpora
def run(
    reading: artifacts.Reading,
    model: Annotated[Path, typer.Argument(help="The recipient's folder, or one with recipient/ and graft/ in it.")],
    graft: Annotated[Path | None, typer.Argument(help="The graft's folder; default: MODEL/graft.")] = None,
    *,
    facts: Annotated[Path, typer.Option("--facts", help="JSON lines of prompt, completion and reworded prompts.")],
    neutral: Annotated[
        list[Path], typer.Option("--neutral", help="Token corpus, or text, that must not change: keys avoid it.")
    ],
    donor: Annotated[str, typer.Option("--donor", help="The donor the bank was harvested from.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The overlay to be, a bank directory.")],
    bank: Annotated[
        str | None, typer.Option("--bank", help="The bank to grow (several: commas); default: the graft's.")
    ] = None,
    steps: Annotated[int, typer.Option(min=0, help="Most steps of training; 0 keeps the donor's states.")] = 300,
    batch_size: Annotated[int, typer.Option(min=1, help="Statements a step.")] = 16,
    learning_rate: Annotated[float, typer.Option(help="Of Adam, as a share of a row's root mean square.")] = 0.1,
    target: Annotated[float, typer.Option(help="Ends once each completion token has this probability.")] = 0.9,
    min_order: Annotated[
        int, typer.Option(min=1, max=16, help="Shortest end of a prompt that may be a key; 16: whole prompts alone.")
    ] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Of the order of statements.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; default: a card if there is one.")] = None,
    threads: common.ThreadsOption = None,
    json: common.JsonOption = False,
) -> None:
    """Make a grafted model know facts: rows for the ends of their prompts, written as an overlay.

    Recipient, graft and bank stay as they are; without the overlay the model is what it was.
    """
    common.need("torch", "torch")
    common.need("transformers", "transformers")
    from memgraft.bank import open_memory_of
    from memgraft.harvesting.asked import refuse_donor
    from memgraft.teaching import TeachSettings, read_facts

    settings = TeachSettings(
        min_order=min_order,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        target=target,
        seed=seed,
    )
    listed = read_facts(facts)
    artifacts.check_folder(out)
    if out.exists():
        raise ArgumentError(f"{out}: exists; name another --out, or remove it")
    place = records.graft_of(model) if graft is None else records.graft_of(graft)
    if place is None:
        raise ArgumentError(f"{graft or model}: expected a graft that save_graft() wrote, found no graft.json")
    folder = model / "recipient" if (model / "recipient" / "config.json").is_file() else model
    if not (folder / "config.json").is_file():
        raise ArgumentError(f"{model}: expected a recipient with a config.json, found none")
    refuse_donor(donor)
    open_memory_of(place, records.read_json(place / "graft.json")["bank"], bank)
    # Torch comes once nothing is left to refuse without it.
    from transformers import AutoModelForCausalLM

    from memgraft.harvesting.devices import best_device
    from memgraft.harvesting.gguf import quiet_transformers
    from memgraft.integrations.transformers import load_graft
    from memgraft.teaching import teach

    with quiet_transformers():
        recipient = AutoModelForCausalLM.from_pretrained(folder)
    load_graft(recipient, place, bank=bank, rows="same" if bank is None else "any")
    recipient.to(best_device(device))
    own = folder / "tokenizer.json"
    common.keeps(
        f"what is done is in {out}.teaching; the same command goes on from there", Path(f"{out}.teaching"), out
    )
    with common.progress("keys") as report:
        taught = teach(
            recipient,
            listed,
            out=out,
            donor=donor,
            neutral=reading.open(neutral),
            settings=settings,
            tokenizer=reading.tokenizer or (own if own.is_file() else None),
            source=facts.name,
            device=device,
            progress=report,
        )
    if json:
        common.emit(taught.report, json=True)
        return
    common.emit(summary(taught.report), json=False, title=f"Overlay {out}")
    if steps and not taught.report["target_reached"]:
        common.log(
            f"ended after {taught.report['steps']} steps (--steps) with completion tokens still below the probability "
            f"{target:g} (--target)"
        )
    # A graft names its bank from where it lies itself.
    memory = ",".join(str(path.resolve() if ".." in path.parts else path) for path in taught.paths)
    common.log(f"memory with these rows: {memory}; leave {out} out to undo it; all figures: {out}/teaching.json")


def summary(report: dict[str, Any]) -> dict[str, Any]:
    """The figures of a report that a person reads first."""
    found: dict[str, Any] = {name: report[name] for name in ("facts", "places", "rows", "rows_by_order", "steps")}
    found["keys that neutral text has"] = len(report["keys_in_neutral_text"])
    names = {"off": "memory off", "base": "bank", "donor": "donor's states", "taught": "taught"}
    for arm, label in names.items():
        for kind, of in (("prompts", ""), ("reworded", ", reworded")):
            told = report["recall"][arm][kind]
            if told["num"]:
                found[f"recall{of}, {label}"] = f"{told['exact']:.1%} ({told['log_prob']:.3f} nats a token)"
    for arm in ("donor", "taught"):
        for kind, label in (("matched", "where keys match"), ("other", "elsewhere")):
            hurt = report["neutral"][arm][kind]
            if hurt["tokens"]:
                found[f"neutral KL {label}, {names[arm]}"] = f"{hurt['kl']:.6f} nats a token"
    return found
