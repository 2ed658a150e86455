"""The sections about what a comparison is made from: the coverage of its keys, its bank, its inputs and settings."""

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from memgraft.bank.health import collapsed, health_warnings
from memgraft.corpus.overlapping import WORTH_SAYING
from memgraft.report import plots
from memgraft.report.parts import html_section, html_table

_MINED = {
    True: "the keys were mined from it, so this is no prediction",
    False: "the keys were not mined from it",
    None: "whether the keys were mined from it is not known",
}


def coverage_section(coverage: Mapping[str, Mapping[str, Any]]) -> str:
    """Coverage by order: a line and a row for each stream, and for each domain in it."""
    shares = "; ".join(
        f"of {name}, {100 * facts['misses'] / max(1, facts['positions']):.1f} % of positions have none and use the "
        f"fallback ({_mined(facts)})"
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


def _mined(facts: Mapping[str, Any]) -> str:
    """Whether a stream is text that the keys were mined from, or shares text with that."""
    mined, shared = facts.get("mined_from_it"), facts.get("shared_with_mined") or 0
    more = f", but about {shared:.0%} of it is in the text that was mined" if shared >= WORTH_SAYING else ""
    return _MINED[mined] + (more if mined is False else "")


def _with_domains(coverage: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Each stream and, below it, each domain that was counted apart in it."""
    found = {}
    for name, facts in coverage.items():
        found[name] = dict(facts)
        for domain, part in facts.get("domains", {}).items():
            found[f"{name}: {domain}"] = {**part, "misses": part["positions"] - sum(part["hits"].values())}
    return found


def bank_section(bank: Mapping[str, Any]) -> str:
    """What the bank holds, who its donor is, and how healthy its rows are."""
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


def _tiles(entries: Iterable[tuple[str, str]]) -> str:
    return (
        '<div class="tiles">'
        + "".join(f"<div><b>{escape(v)}</b><span>{escape(k)}</span></div>" for k, v in entries)
        + "</div>"
    )


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


def _bytes(count: int) -> str:
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def material_section(facts: Mapping[str, Any]) -> str:
    """Inputs, settings, versions and times that are on record."""
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
