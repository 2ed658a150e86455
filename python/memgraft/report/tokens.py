"""What a graft does to a text as one HTML file: each token in the colour of its row's effect, and a table."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from memgraft.report.parts import document, html_section, html_table

# Effects of so many nats and more have the full colour.
_FULL = 1.0
_STYLE = """
.tokens { font: 17px/2.1 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.tokens span { border-radius: 3px; padding: 2px 0; border-bottom: 2px solid transparent; }
.tokens span.hit { border-bottom-color: var(--muted); }
"""


def tokens_page(text: str, tokens: Sequence[Mapping[str, Any]], *, tool: str) -> str:
    """The page.

    Args:
        text: what was explained.
        tokens: for each token its ``text``, ``order``, ``match``, ``row``, ``bank``, ``gate``, ``injected`` and
            ``effect``, as `memgraft inspect MODEL --text --json` gives them.
        tool: what made it.
    """
    hits = [one for one in tokens if one["match"] is not None]
    effects = [one["effect"] for one in hits if one["effect"] is not None]
    lead = (
        f"{len(tokens)} tokens, {len(hits)} with a row (underlined). A row that helps the next token is blue, one that "
        "harms it is red; point at a token for its match."
    )
    marked = '<div class="tokens">' + "".join(_marked(one) for one in tokens) + "</div>"
    rows = [
        (
            repr(one["text"]),
            "miss" if one["match"] is None else repr(one["match"]),
            "" if one["bank"] is None else Path(one["bank"]).name,
            str(one["order"] or "–"),
            " ".join(f"{value:.3f}" for value in one["gate"].values()),
            " ".join(f"{value:.3f}" for value in one["injected"].values()),
            "–" if one["effect"] is None else _signed(one["effect"]),
        )
        for one in tokens
    ]
    head = ("token", "longest match", "bank", "order", "gate", "injected norm", "effect (nats)")
    total = f" Sum of the effects: {_signed(sum(effects))} nats." if effects else ""
    meaning = "Effect: what the row alone adds to the log-probability of the next token of the text."
    sections = html_section("The text", lead, marked) + html_section(
        "Token by token", meaning + total, html_table(head, rows, 3)
    )
    return document(title="What the memory does to a text", subtitle=text[:200], body=sections, tool=tool, style=_STYLE)


def _marked(one: Mapping[str, Any]) -> str:
    if one["match"] is None:
        return f"<span>{escape(one['text'])}</span>"
    effect = one["effect"]
    said = f"order {one['order']}: {one['match']!r}, row {one['row']}"
    colour = ""
    if effect is not None:
        said += f", {_signed(effect)} nats"
        share = min(abs(effect) / _FULL, 1.0) * 0.6
        colour = f' style="background: rgba({"18, 87, 184" if effect > 0 else "184, 68, 107"}, {share:.2f})"'
    return f'<span class="hit" title="{escape(said)}"{colour}>{escape(one["text"])}</span>'


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", "\N{MINUS SIGN}")
