"""What pages are made of: one style, boxes, tables, numbers."""

from collections.abc import Iterable, Sequence
from html import escape

_STYLE = """
:root { color-scheme: light; --ink: #1c2430; --muted: #5f6b7a; --line: #e3e7ec; --blue: #1257b8; --wash: #f6f8fb; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--wash); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", sans-serif; }
main { max-width: 880px; margin: 0 auto; padding: 40px 28px 72px; }
header p { color: var(--muted); margin: 4px 0 0; }
h1 { font-size: 27px; line-height: 1.2; margin: 0; letter-spacing: -0.01em; }
h2 { font-size: 19px; margin: 0 0 4px; }
section { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 24px 28px; margin-top: 20px; }
section > p { margin: 6px 0 12px; color: var(--muted); max-width: 70ch; }
.verdict { border-left: 5px solid var(--blue); }
.verdict.bad { border-left-color: #b8446b; }
.verdict.open { border-left-color: #7b8794; }
.number { font-size: 40px; font-weight: 650; letter-spacing: -0.02em; line-height: 1.15;
  font-variant-numeric: tabular-nums; }
.number small { font-size: 17px; font-weight: 450; color: var(--muted); letter-spacing: 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(165px, 1fr)); gap: 14px; margin-top: 16px; }
.tiles div { border-top: 2px solid var(--line); padding-top: 8px; }
.tiles b { display: block; font-size: 20px; font-weight: 600; font-variant-numeric: tabular-nums; }
.tiles span { color: var(--muted); font-size: 14px; }
svg { width: 100%; height: auto; display: block; }
svg + svg, svg + .scroll, .scroll + .scroll { margin-top: 16px; }
.number + .scroll { margin-top: 10px; }
svg text { font-family: inherit !important; }
table { border-collapse: collapse; width: 100%; font-size: 14.5px; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--muted); border-bottom: 1.5px solid var(--line);
  padding: 6px 10px 6px 0; }
td { border-bottom: 1px solid var(--line); padding: 6px 10px 6px 0; vertical-align: top; overflow-wrap: break-word;
  white-space: pre-wrap; }
.which td { overflow-wrap: anywhere; } .which td:first-child { min-width: 9em; }
.scroll { overflow-x: auto; } td:first-child { min-width: 8em; }
td.n, th.n { text-align: right; padding-right: 0; padding-left: 12px; white-space: nowrap; }
th.n { white-space: normal; vertical-align: bottom; }
blockquote { margin: 12px 0 0; padding: 14px 18px; background: var(--wash); border-radius: 8px; white-space: pre-wrap;
  font: 14.5px/1.55 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
blockquote b { color: var(--blue); font-weight: 600; }
ul { margin: 8px 0 0; padding-left: 20px; } li { margin: 4px 0; }
code { font: 13.5px ui-monospace, "DejaVu Sans Mono", Menlo, monospace; overflow-wrap: anywhere; }
footer { color: var(--muted); font-size: 14px; margin-top: 24px; }
@media (max-width: 560px) { main { padding: 20px 10px 40px; } section { padding: 18px 16px; overflow-x: auto; }
  table { font-size: 12.5px; } td.n, th.n { padding-left: 7px; } td:first-child { min-width: 5.5em; }
  svg { width: 520px; } }
@media print { body { background: #fff; } section { break-inside: avoid; } }
"""


def document(*, title: str, subtitle: str, body: str, tool: str, style: str = "") -> str:
    """A page in one file.

    Args:
        title: its heading.
        subtitle: the line below.
        body: sections, as HTML.
        tool: what made it, at the foot.
        style: CSS of this page's own.
    """
    title = escape(title)
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{title}</title>\n<style>{_STYLE}{style}</style>\n<main>\n<header><h1>{title}</h1>"
        f"<p>{escape(subtitle)}</p></header>\n{body}\n"
        f"<footer>{escape(tool)}</footer>\n"
        "</main>\n</html>\n"
    )


def html_section(title: str, lead: str, body: str, kind: str = "") -> str:
    """A box of the page; ``body`` is HTML."""
    attribute = f' class="{kind}"' if kind else ""
    return f"<section{attribute}><h2>{escape(title)}</h2><p>{escape(lead)}</p>{body}</section>\n"


def html_table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 1) -> str:
    """A table whose columns from ``numbers`` on hold numbers."""

    def cells(row: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=n' if place >= numbers else ''}>{escape(cell)}</{tag}>" for place, cell in enumerate(row)
        )

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    kind = ' class="which"' if numbers >= len(head) else ""
    table = f"<table{kind}><thead><tr>{cells(head, 'th')}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll">{table}</div>'


def signed(value: float | None) -> str:
    """A difference in nats with its sign; a dash where there is none."""
    return "–" if value is None else f"{value:+.4f}".replace("-", "\N{MINUS SIGN}")


def nats(value: float | None) -> str:
    """A loss in nats; a dash where there is none."""
    return "–" if value is None else f"{value:.4f}"
