"""The report's pictures as inline SVG; one colour per arm everywhere, nothing carried by colour alone."""

import io
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

from memgraft.controls import ARMS

INK, MUTED, GRID = "#1c2430", "#5f6b7a", "#e3e7ec"
_ORDER_COLOURS = ("#bcd3f2", "#8db4e8", "#5a8fd8", "#2c69bf", "#12478f", "#0a2f66")
_FALLBACK_COLOUR = "#f0d9b5"


def _colour(arm: str) -> str:
    """The colour of an arm; that of text for one that this version does not know."""
    return ARMS[arm].colour if arm in ARMS else INK


def _figure(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("svg", force=False)
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style = {
        "font.size": 10.5,
        "font.family": "sans-serif",
        "axes.edgecolor": GRID,
        "axes.labelcolor": MUTED,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.grid": True,
        "grid.color": GRID,
        "grid.linewidth": 0.8,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "text.color": INK,
    }
    with rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(rows, columns, **options)
    return figure, axes


def _svg(figure: Any, label: str) -> str:
    """The figure as an ``<svg>`` element that scales with its box and names itself to screen readers."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    # Text stays text: the page's own sans-serif draws it, it can be searched, and the file stays small.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "memgraft"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1, flags=re.S)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1, flags=re.S)
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def coverage_plot(coverages: Mapping[str, Mapping[str, Any]]) -> str:
    """Share of positions by order of the longest match, one bar per token stream."""
    names = list(coverages)[::-1]
    figure, axes = _figure(7.6, 0.95 + 0.62 * len(names))
    orders = sorted({int(order) for facts in coverages.values() for order in facts["hits"]})
    for row, name in enumerate(names):
        facts = coverages[name]
        left = 0.0
        parts = [(f"order {order}", facts["hits"].get(str(order), facts["hits"].get(order, 0))) for order in orders]
        parts.append(("fallback", facts["misses"]))
        for number, (label, count) in enumerate(parts):
            share = count / max(1, facts["positions"])
            fallback = label == "fallback"
            colour = _FALLBACK_COLOUR if fallback else _ORDER_COLOURS[min(number + 1, len(_ORDER_COLOURS) - 1)]
            axes.barh(row, share, left=left, height=0.62, color=colour, label=label if row == 0 else None)
            if share > 0.045:
                dark = not fallback and number >= 2
                axes.text(
                    left + share / 2, row, f"{100 * share:.1f} %", ha="center", va="center", fontsize=9.5,
                    color="white" if dark else INK,
                )  # fmt: skip
            left += share
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(lambda value, _place: f"{100 * value:.0f} %")
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    figure.legend(loc="outside upper left", ncols=len(orders) + 1, frameon=False, fontsize=9.5, handlelength=1.1)
    return _svg(figure, "Coverage by order of the longest match")


_AGAINST = {
    "tokens": "training tokens",
    "seconds": "seconds of training, evaluation left out",
    "flops": "FLOPs of training",
}


def _spent(result: Mapping[str, Any], tokens_per_step: int, against: str) -> list[float]:
    """What was spent at each point of an arm's curve; empty where the result does not record it."""
    tokens = [step * tokens_per_step for step, _ in result["held_out_curve"]]
    if against == "tokens":
        return [float(count) for count in tokens]
    if against == "seconds":
        return list(result.get("curve_seconds", ()))
    each = result.get("costs", {}).get("training_flops_per_token")
    return [] if each is None else [count * each for count in tokens]


def curves_plot(arms: Sequence[Mapping[str, Any]], tokens_per_step: int, against: str = "tokens") -> str:
    """Held-out loss over training tokens, seconds or FLOPs: a line per arm, named at its end, in a band over its seeds.

    The line is the mean over seeds, the band goes from the lowest to the highest. Nothing where no arm records what was
    spent.
    """
    if not any(_spent(result, tokens_per_step, against) for result in arms):
        return ""
    from matplotlib.ticker import EngFormatter

    figure, axes = _figure(7.6, 4.1)
    ends = []
    for name in dict.fromkeys(result["arm"] for result in arms):
        seeds = [result for result in arms if result["arm"] == name]
        curves = [(_spent(result, tokens_per_step, against), result["held_out_curve"]) for result in seeds]
        curves = [(spent, curve) for spent, curve in curves if spent]
        if not curves:
            continue
        # Arms of one experiment have points at the same steps; the shortest decides where one does not.
        points = min(len(curve) for _, curve in curves)
        spent = [fmean(spent[point] for spent, _ in curves) for point in range(points)]
        at = [[curve[point][1] for _, curve in curves] for point in range(points)]
        losses = [fmean(found) for found in at]
        arm = ARMS.get(name)
        colour = _colour(name)
        # One point makes no line.
        alone, width = "o" if points == 1 else "", 2.0 if name == "graft" else 1.6
        (line,) = axes.plot(spent, losses, color=colour, linewidth=width, marker=alone)
        if len(curves) > 1 and alone:
            axes.vlines(spent, min(at[0]), max(at[0]), color=colour, alpha=0.4)
        elif len(curves) > 1:
            axes.fill_between(spent, [min(f) for f in at], [max(f) for f in at], color=colour, alpha=0.18, linewidth=0)
        if arm is not None and arm.dashes is not None:
            line.set_dashes(arm.dashes)
        ends.append((losses[-1], spent[-1], seeds[0]["label"], colour))
    axes.ticklabel_format(useOffset=False)
    if against != "seconds":
        axes.xaxis.set_major_formatter(EngFormatter())  # 384, 1.2 M, 3 P
    low, high = axes.get_ylim()
    # The first points stand far above the rest and would flatten what matters.
    interesting = [loss for result in arms for _, loss in result["held_out_curve"][1:]]
    if len(interesting) > 2 * len(arms):
        low, high = min(interesting) - 0.1, max(interesting) + 0.25
        axes.set_ylim(low, high)
    ends.sort()
    places = apart([loss for loss, _, _, _ in ends], (high - low) * 0.055)
    # All beside the axes: arms that took less time end in the middle of the others' curves.
    last = max((token for _, token, _, _ in ends), default=0.0)
    for place, (_, _, label, colour) in zip(places, ends, strict=True):
        axes.annotate(label, (last, place), xytext=(7, 0), textcoords="offset points", color=colour, va="center")
    axes.set_xlabel(_AGAINST[against])
    axes.set_ylabel("held-out loss, nats per token")
    axes.margins(x=0.01)
    return _svg(figure, f"Held-out loss over {_AGAINST[against]}, by arm")


def apart(places: Sequence[float], gap: float) -> list[float]:
    """Ascending ``places`` moved until neighbours are ``gap`` apart; crowded ones stay around their mean."""
    groups: list[list[float]] = []
    for place in places:
        groups.append([place])
        while len(groups) > 1:
            below, above = groups[-2], groups[-1]
            top = sum(below) / len(below) + gap * (len(below) - 1) / 2
            bottom = sum(above) / len(above) - gap * (len(above) - 1) / 2
            if bottom - top >= gap:
                break
            groups[-2:] = [below + above]
    moved: list[float] = []
    for group in groups:
        lowest = sum(group) / len(group) - gap * (len(group) - 1) / 2
        moved += [lowest + gap * rank for rank in range(len(group))]
    return moved


def finals_plot(arms: Sequence[Mapping[str, Any]]) -> str:
    """Final held-out losses by arm: all tokens, those after a hit, those after a miss; one dot per seed."""
    names = list(dict.fromkeys(result["arm"] for result in arms))
    panels = (("overall", "all tokens"), ("hit", "after a hit"), ("miss", "after a miss"))
    figure, axes = _figure(7.6, 0.95 + 0.42 * len(names), 1, 3, sharey=True)
    for place, (part, title) in zip(axes, panels, strict=True):
        values: list[float] = []
        for row, name in enumerate(reversed(names)):
            losses = [result["held_out"][part] for result in arms if result["arm"] == name]
            losses = [loss for loss in losses if loss is not None]
            values += losses
            place.plot(losses, [row] * len(losses), "o", color=_colour(name), markersize=7)
            if losses:
                mean = sum(losses) / len(losses)
                place.annotate(
                    f"{mean:.3f}", (mean, row), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=9
                )
        place.set_title(title, fontsize=10.5, loc="left", color=INK)
        place.set_ylim(-0.6, len(names) - 0.25)
        if values:
            spread = max(max(values) - min(values), 1e-3)
            middle = (max(values) + min(values)) / 2
            place.set_xlim(middle - 0.75 * spread, middle + 0.75 * spread)
        place.ticklabel_format(axis="x", useOffset=False)
        place.locator_params(axis="x", nbins=3)
        place.spines["left"].set_visible(False)
        place.tick_params(axis="y", length=0, labelcolor=INK)
    labels = {result["arm"]: result["label"] for result in arms}
    axes[0].set_yticks(range(len(names)), [labels[name] for name in reversed(names)])
    return _svg(figure, "Final held-out losses by arm")


def gate_plot(gates: Mapping[str, Any]) -> str:
    """Distribution of the gate over held-out positions, hits and misses apart."""
    figure, axes = _figure(7.6, 2.6)
    edges = gates["edges"]
    centres = [(low + high) / 2 for low, high in pairwise(edges)]
    for name, colour, dashes in (("hit", _colour("graft"), None), ("miss", _colour("engram"), (5, 2))):
        counts = gates[name]["histogram"]
        if total := sum(counts):
            mean = gates[name]["mean"]
            (line,) = axes.plot(
                centres,
                [count / total for count in counts],
                color=colour,
                linewidth=1.8,
                label=f"{name} (mean {mean:.3f})",
            )
            if dashes:
                line.set_dashes(dashes)
    axes.set_xlabel("gate α")
    axes.set_ylabel("share of positions")
    axes.yaxis.set_major_formatter(lambda value, _place: f"{100 * value:.3g} %")
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=9.5)
    return _svg(figure, "Gate of the graft on held-out text, hits and misses apart")


def probe_plot(facts: Mapping[str, Any]) -> str:
    """Losses of a probe's candidates (filled) and baselines (hollow), the best on top, with intervals to the best."""
    rows = sorted([*facts["candidates"], *facts["baselines"]], key=lambda row: row["loss"], reverse=True)
    figure, axes = _figure(9.0, 0.9 + 0.34 * len(rows))
    for place, row in enumerate(rows):
        known = row["kind"] == "candidate"
        colour = _colour("graft" if known else "none")
        best = row["loss"] - row["worse"]
        axes.plot([best + row["low"], best + row["high"]], [place, place], color=colour, linewidth=1.4)
        axes.plot(row["loss"], place, "o", color=colour, markersize=7, markerfacecolor=colour if known else "white")
        speed = f"  {row['keys_per_second']:,.0f} keys/s" if known else ""
        axes.annotate(
            f"{row['loss']:.3f}{speed}", (max(row["loss"], best + row["high"]), place), xytext=(7, 0),
            textcoords="offset points", va="center", fontsize=9,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.margins(x=0.2)
    axes.set_xlabel("held-out loss of a linear softmax, nats a hit")
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    return _svg(figure, "What the values of each candidate know of the next token")


def health_plot(groups: Mapping[str, Mapping[str, Any]]) -> str:
    """Groups of a bank's rows: what share of counted positions each covers, how alike its rows are, how large."""
    names = list(groups)
    figure, axes = _figure(8.6, 1.1 + 0.34 * len(names), 1, 3, sharey=True)
    places = list(range(len(names)))[::-1]
    colour = _colour("graft")
    for place, group in zip(places, groups.values(), strict=True):
        axes[0].barh(place, group["share_of_counts"], height=0.6, color=colour)
        axes[0].annotate(
            f"{100 * group['share_of_counts']:.0f} %", (group["share_of_counts"], place), xytext=(4, 0),
            textcoords="offset points", va="center", fontsize=9,
        )  # fmt: skip
        axes[1].plot(group["mean_cosine"], place, "o", color=colour)
        axes[1].plot(group["rows_with_twin"], place, "x", color=MUTED)
        low, median, high = group["norms"]
        axes[2].plot([max(low, 1e-12), max(high, 1e-12)], [place, place], color=MUTED, linewidth=1.4)
        axes[2].plot(max(median, 1e-12), place, "o", color=colour)
    titles = ("share of counted positions", "mean cosine (dot), rows with a twin (cross)", "norm: 1 %, median, 99 %")
    for place, title in zip(axes, titles, strict=True):
        place.set_title(title, fontsize=9.5, loc="left", color=INK)
        place.set_ylim(-0.6, len(names) - 0.4)
        place.grid(axis="y", visible=False)
        place.spines["left"].set_visible(False)
        place.tick_params(axis="y", length=0, labelcolor=INK)
    axes[0].set_xlim(0, 1.15 * max((group["share_of_counts"] for group in groups.values()), default=1) + 1e-6)
    axes[1].set_xlim(-0.05, 1.05)
    axes[2].set_xscale("log")
    axes[0].set_yticks(places, names)
    return _svg(figure, "Rows by what the donor read: share of positions, likeness, norms")
