"""The report as one HTML file: no script, no font, no picture from elsewhere."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from memgraft.bank.health import collapsed, health_warnings
from memgraft.report import plots
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
        _coverage(facts["coverage"]) if facts.get("coverage") else "",
        _gates(facts["gates"]) if facts.get("gates") else "",
        _bank(facts["bank"]) if facts.get("bank") else "",
        _sample(facts["sample"]) if facts.get("sample") else "",
        _material(facts),
        _not_measured(facts.get("not_measured", ())),
    ]
    return document(
        title=facts.get("title", "memgraft report"),
        subtitle=facts.get("subtitle", ""),
        body="".join(sections),
        tool=" · ".join((facts.get("tool", "memgraft"), facts.get("created", ""))),
    )


def _tiles(entries: Iterable[tuple[str, str]]) -> str:
    return (
        '<div class="tiles">'
        + "".join(f"<div><b>{escape(v)}</b><span>{escape(k)}</span></div>" for k, v in entries)
        + "</div>"
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
        f"the start{'' if same else ' — NOT in this run: the recorded fingerprints differ'}. Lower is better. "
        "Curves are means over seeds, their bands go from the lowest seed to the highest."
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
            differences = [
                None if loss is None or means[arm][group][0] is None else means[arm][group][0] - loss  # type: ignore[operator]
                for arm in others
            ]
            title = words.get(group, f"{name} {group}")
            rows.append((title, str(tokens), nats(loss), *(signed(difference) for difference in differences)))
        heads = [f"{arm} minus {base}".replace("_", " ") for arm in others]
        tables += html_table((f"by {name}", "tokens", base.replace("_", " "), *heads), rows)
    lead = (
        f"Held-out loss of '{base}' and what each arm differs from it, means over seeds, no intervals: by the order "
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


_MINED = {
    True: "the keys were mined from it, so this is no prediction",
    False: "the keys were not mined from it",
    None: "whether the keys were mined from it is not known",
}


def _with_domains(coverage: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Each stream and, below it, each domain that was counted apart in it."""
    found = {}
    for name, facts in coverage.items():
        found[name] = dict(facts)
        for domain, part in facts.get("domains", {}).items():
            found[f"{name}: {domain}"] = {**part, "misses": part["positions"] - sum(part["hits"].values())}
    return found


def _coverage(coverage: Mapping[str, Mapping[str, Any]]) -> str:
    shares = "; ".join(
        f"of {name}, {100 * facts['misses'] / max(1, facts['positions']):.1f} % of positions have none and use the "
        f"fallback ({_MINED[facts.get('mined_from_it')]})"
        for name, facts in coverage.items()
    )
    lead = f"The longest stored n-gram that ends at a position gives its row: {shares}."
    streams = _with_domains(coverage)
    rows = [
        (
            name,
            f"{facts['positions']:,}",
            f"{100 * (1 - facts['misses'] / max(1, facts['positions'])):.1f} %",
            f"{facts['unique_rows']:,}" if "unique_rows" in facts else "-",
        )
        for name, facts in streams.items()
    ]
    return html_section(
        "Coverage by order",
        lead,
        plots.coverage_plot(streams) + html_table(("tokens of", "positions", "coverage", "rows used"), rows),
    )


def _gates(gates: Mapping[str, Any]) -> str:
    lead = (
        "How far the trained graft opens its gate on held-out text, and how large what it adds is beside the hidden "
        f"state: {100 * gates['hit']['ratio']:.1f} % of its norm at hits, "
        f"{100 * gates['miss']['ratio']:.1f} % at misses."
    )
    return html_section("Gate", lead, plots.gate_plot(gates))


def _bytes(count: int) -> str:
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def _bank(bank: Mapping[str, Any]) -> str:
    tiles = [
        ("rows", f"{bank['num_rows']:,}"),
        ("values", _bytes(bank["value_bytes"])),
        ("bytes per row", f"{bank['bytes_per_row']:,}"),
        ("donor blocks before the tap" + "s" * (len(bank["taps"]) > 1), ", ".join(map(str, bank["taps"]))),
        ("dropped keys", f"{sum(bank['dropped'].values()):,}"),
    ]
    if bank.get("keys_per_second"):
        tiles.append(("keys per second in the harvest", f"{bank['keys_per_second']:,.0f}"))
    rows = [(f"rows of order {order}", f"{count:,}") for order, count in bank["rows_by_order"].items()]
    rows += [(f"dropped: {reason.replace('_', ' ')}", f"{count:,}") for reason, count in bank["dropped"].items()]
    donor = bank["donor"]
    known = all(name in donor for name in ("name", "architecture", "num_blocks", "value_dim"))
    who = "Rows whose donor is not on record"
    if known:
        who = (
            f"Donor {donor['name']} ({donor['architecture']}, {donor['num_blocks']} blocks of width "
            f"{donor['value_dim']})"
        )
    lead = f"{who}, read after block {', '.join(map(str, bank['taps']))}; stored as {bank['dtype']}."
    body = _tiles(tiles) + "<br>" + html_table(("", ""), rows)
    if health := bank.get("rows"):
        whole = bank.get("all_rows")
        for line in collapsed(health) if whole is None else health_warnings(health, whole):
            body += f"<p><b>Look at:</b> {escape(line)}.</p>"
        shown = dict(health) if whole is None else {**health, "all": {"share_of_counts": 1.0, **whole}}
        head = ("rows read as", "rows", "share of counts", "mean cosine", "with a twin", "norm", "rank", "outliers")
        body += "<br>" + html_table(head, _alike(shown))
        if whole is not None:
            body += plots.health_plot(health)
    return html_section("Bank", lead, body)


def _alike(health: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Groups of rows: how many, how alike, how large, how varied; reports of earlier versions have less."""
    return [
        (
            name,
            f"{g['rows']:,}",
            f"{100 * g['share_of_counts']:.1f} %",
            f"{g['mean_cosine']:.3f}",
            f"{100 * g['rows_with_twin']:.1f} %" if "rows_with_twin" in g else "",
            f"{g['median_norm']:.4g}",
            f"{g['effective_rank']:.0f}" if "effective_rank" in g else "",
            f"{g['outlier_channels']} ({100 * g['outlier_energy']:.0f} %)" if "outlier_channels" in g else "",
        )
        for name, g in health.items()
    ]


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


def _material(facts: Mapping[str, Any]) -> str:
    rows = [(str(name), str(value)) for name, value in facts.get("material", {}).items()]
    if machine := facts.get("machine"):
        versions = ", ".join(
            f"{name} {machine[name]}" for name in ("python", "torch", "transformers") if name in machine
        )
        rows.append(("machine", f"{machine['processor']}, {machine['cores']} cores, {machine['system']}; {versions}"))
    phases = [(name, f"{seconds:.1f} s") for name, seconds in facts.get("seconds", {}).items()]
    body = html_table(("what", "which"), rows, numbers=9) if rows else ""
    if phases:
        body += "<br>" + html_table(("phase", "time, when it last ran"), phases)
    lead = "The inputs, settings and versions that are on record; what is not known is said to be unknown."
    return html_section("What it was made from", lead, body) if body else ""


def _not_measured(entries: Sequence[str]) -> str:
    if not entries:
        return ""
    items = "".join(f"<li>{escape(entry)}</li>" for entry in entries)
    return html_section("Not measured here", "What this report does not show.", f"<ul>{items}</ul>")
