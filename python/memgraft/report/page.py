"""The report as one HTML file: no script, no font, no picture from elsewhere."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from memgraft.report import plots
from memgraft.report.material import bank_section, coverage_section, material_section
from memgraft.report.memory import memory_section, tasks_section
from memgraft.report.parts import document, html_section, html_table, nats, signed
from memgraft.report.verdict import verdict


def render(facts: Mapping[str, Any]) -> str:
    """The whole page from what ``report.json`` holds; sections without facts are left out."""
    experiment = facts.get("experiment")
    sections = [
        _verdict(experiment) if experiment else "",
        _arms(experiment) if experiment else "",
        _groups(experiment) if experiment else "",
        _moved(experiment["moved"]) if experiment and experiment.get("moved") else "",
        memory_section(experiment) if experiment else "",
        tasks_section(experiment) if experiment else "",
        _costs(experiment) if experiment else "",
        coverage_section(facts["coverage"]) if facts.get("coverage") else "",
        _gates(facts["gates"]) if facts.get("gates") else "",
        bank_section(facts["bank"]) if facts.get("bank") else "",
        _sample(facts["sample"]) if facts.get("sample") else "",
        material_section(facts),
        _not_measured(facts.get("not_measured", ())),
    ]
    return document(
        title=facts.get("title", "memgraft report"),
        subtitle=facts.get("subtitle", ""),
        body="".join(sections),
        tool=" · ".join((facts.get("tool", "memgraft"), facts.get("created", ""))),
    )


def _verdict(experiment: Mapping[str, Any]) -> str:
    if not experiment["comparisons"]:
        return ""
    found = verdict(experiment)
    main = experiment["comparisons"][0]
    names = [f"{entry['first']} minus {entry['second']}".replace("_", " ") for entry in experiment["comparisons"]]
    interval, difference = main["interval"], main["difference"]
    overs = [e["over"] if e["over"] != "seeds" else f"{len(e['seeds'])} seeds" for e in experiment["comparisons"]]
    # Over what the intervals are is told above the table; it takes a column where they differ.
    told = len(set(overs)) == 1
    number = (
        f'<div class="number">{signed(difference["overall"])} <small>nats per held-out token, {escape(names[0])}; '
        f"95 % interval {signed(interval['low'])} to {signed(interval['high'])} over {escape(overs[0])}"
        "</small></div>"
    )
    rows = [
        (
            name,
            signed(e["difference"]["overall"]),
            f"{signed(e['interval']['low'])} to {signed(e['interval']['high'])}",
            *(() if told else (over,)),
            signed(e["difference"]["hit"]),
            signed(e["difference"]["miss"]),
        )
        for name, over, e in zip(names, overs, experiment["comparisons"], strict=True)
    ]
    head = ("difference", "all tokens", "95 % interval", *(() if told else ("over",)), "after a hit", "after a miss")
    return html_section(
        f"{names[0][:1].upper()}{names[0][1:]}",
        " ".join(found.sentences),
        number + html_table(head, rows),
        "verdict" if found.kind == "helps" else "verdict bad" if found.kind == "hurts" else "verdict open",
    )


def _arms(experiment: Mapping[str, Any]) -> str:
    arms = experiment["arms"]
    same = experiment["same_order"] and experiment["same_start"]
    per_arm = experiment["tokens_per_arm"]
    lead = (
        f"{per_arm:,} training tokens per arm, the same tokens in the same order and the same recipient weights at "
        f"the start{'' if same else ' — NOT in this run: the recorded fingerprints differ'}. Lower is better."
    )
    if len({result["seed"] for result in arms}) > 1:
        lead += " Curves are means over seeds, their bands go from the lowest seed to the highest."
    plan = experiment.get("plan", {})
    drawn, evaluated = plan.get("curve_windows"), plan.get("held_out_windows")
    if drawn and evaluated and drawn != evaluated:
        lead += (
            f" The points of the curves are over {drawn:,} held-out windows, the table over {evaluated:,}, so that a "
            "curve does not end at its arm's loss below."
        )
    rows = [
        (
            result["label"] + (f", seed {result['seed']}" if len({r["seed"] for r in arms}) > 1 else ""),
            nats(result["held_out"]["overall"]),
            nats(result["held_out"]["hit"]),
            nats(result["held_out"]["miss"]),
            nats(result["held_out"].get("bits_per_byte")),
            f"{result['tokens_per_second']:,.0f}",
            f"{result['num_parameters'] / 1e6:.2f} M",
        )
        for result in arms
    ]
    table = html_table(
        ("arm", "all tokens", "after a hit", "after a miss", "bits a byte", "tokens/s", "parameters"), rows
    )
    tokens_per_step = experiment["settings"]["recipe"]["seq_len"] * experiment["settings"]["recipe"]["batch_size"]
    curves = "".join(plots.curves_plot(arms, tokens_per_step, against) for against in ("tokens", "flops", "seconds"))
    return html_section("Held-out loss by arm", lead, curves + plots.finals_plot(arms) + table)


def _mean_by(results: Sequence[Mapping[str, Any]], kind: str, name: str) -> dict[Any, tuple[float | None, int]]:
    """Mean loss over seeds and number of tokens of each group of ``kind``; no loss where a seed has none."""
    found: dict[Any, tuple[float | None, int]] = {}
    for number, entry in enumerate(results[0]["held_out"].get(kind, ())):
        losses = [result["held_out"][kind][number]["loss"] for result in results]
        known = [loss for loss in losses if loss is not None]
        found[entry[name]] = (sum(known) / len(known) if len(known) == len(losses) else None, entry["tokens"])
    return found


def _groups(experiment: Mapping[str, Any]) -> str:
    """What each arm loses against no memory (or the first arm) by order of the match and decile of the key's count."""
    by_arm: dict[str, list[Mapping[str, Any]]] = {}
    for result in experiment["arms"]:
        by_arm.setdefault(result["arm"], []).append(result)
    base = "none" if "none" in by_arm else next(iter(by_arm))
    if len(by_arm) < 2 or not all("by_order" in result["held_out"] for result in experiment["arms"]):
        return ""
    others = [arm for arm in by_arm if arm != base]
    tables = ""
    for kind, name, words in (
        ("by_order", "order", {0: "no match"}),
        ("by_count_decile", "decile", {1: "decile 1 (most frequent keys)", 10: "decile 10 (rarest keys)"}),
        ("by_domain", "domain", {}),
    ):
        if not all(kind in result["held_out"] for result in experiment["arms"]):
            continue
        means = {arm: _mean_by(results, kind, name) for arm, results in by_arm.items()}
        rows = []
        for group, (loss, tokens) in means[base].items():
            if not tokens:  # keys of one token, where none was mined
                continue
            differences = [
                None if loss is None or means[arm][group][0] is None else means[arm][group][0] - loss  # type: ignore[operator]
                for arm in others
            ]
            title = words.get(group, f"{name} {group}")
            rows.append((title, str(tokens), nats(loss), *(signed(difference) for difference in differences)))
        heads = [f"{arm} minus {base}".replace("_", " ") for arm in others]
        tables += html_table((f"by {name}", "tokens", base.replace("_", " "), *heads), rows)
    means_of = "means over seeds, " if max(map(len, by_arm.values())) > 1 else ""
    lead = (
        f"Held-out loss of '{base}' and what each arm differs from it, {means_of}no intervals: by the order "
        "of the longest match before the predicted token and by how often its key was seen."
    )
    return html_section("Which tokens", lead, tables)


_COSTS = (
    "dense_parameters",
    "table_parameters",
    "flops_per_token",
    "training_flops_per_token",
    "bank_bytes_per_hit",
    "table_bytes_per_miss",
)


def _moved(moved: Mapping[str, Any]) -> str:
    """The matches behind which the first arm's loss changed most."""
    first, second = moved["first"], moved["second"]
    tables = "".join(
        html_table(
            (f"match ({title})", "next token", "times", first, second, "difference"),
            (
                (
                    repr(entry["key"]),
                    repr(entry["next"]),
                    str(entry["times"]),
                    nats(entry["loss"]),
                    nats(entry["loss_without"]),
                    signed(entry["loss"] - entry["loss_without"]),
                )
                for entry in moved[part]
            ),
            numbers=2,
        )
        for part, title in (("gained", "gained most"), ("lost", "lost most"))
        if moved[part]
    )
    lead = (
        f"Pairs of matched key and next token whose loss '{first}' lowers and raises most against '{second}', in sum "
        f"over the evaluated text; mean loss a token over {moved['seeds']} seed{'s' * (moved['seeds'] != 1)}. The "
        "extremes of many pairs: an illustration, no evidence."
    )
    return html_section("Tokens that gained and lost most", lead, tables) if tables else ""


def _costs(experiment: Mapping[str, Any]) -> str:
    arms = {result["arm"]: result for result in experiment["arms"] if "costs" in result}
    if not arms:
        return ""
    names = [name for name in _COSTS if all(name in result["costs"] for result in arms.values())]
    rows = [(result["label"], *(f"{result['costs'][name]:,}" for name in names)) for result in arms.values()]
    head = ("arm", *(name.replace("_", " ") for name in names))
    lead = (
        "What each arm adds to the recipient. FLOPs are two a dense parameter of a forward; rows of tables and of the "
        "bank are read, not multiplied. Training FLOPs are those of the whole model with its backward."
    )
    return html_section("What each arm costs", lead, html_table(head, rows))


def _gates(gates: Mapping[str, Any]) -> str:
    lead = (
        "How far the trained graft opens its gate on held-out text, and how large what it adds is beside the hidden "
        f"state: {100 * gates['hit']['ratio']:.1f} % of its norm at hits, "
        f"{100 * gates['miss']['ratio']:.1f} % at misses."
    )
    return html_section("Gate", lead, plots.gate_plot(gates))


def _sample(sample: Mapping[str, Any]) -> str:
    lead = (
        f"The grafted recipient, sampled with its KV cache: {sample['new_tokens']} tokens at "
        f"{sample['tokens_per_second']:.0f} tokens/s, {100 * sample['hit_share']:.0f} % of positions with a hit. "
        "A recipient of this size and budget does not write sense; the sample shows that cached decoding runs "
        "with the memory."
    )
    return html_section(
        "A sample", lead, f"<blockquote><b>{escape(sample['prompt'])}</b>{escape(sample['text'])}</blockquote>"
    )


def _not_measured(entries: Sequence[str]) -> str:
    if not entries:
        return ""
    items = "".join(f"<li>{escape(entry)}</li>" for entry in entries)
    return html_section("Not measured here", "What this report does not show.", f"<ul>{items}</ul>")
