"""The report as Markdown: the words and tables of its page, without the pictures."""

import re
from html.parser import HTMLParser

_SKIPPED = ("style", "svg", "title")
_RUN = re.compile(" {2,}")
_BLOCKS = ("p", "li", "blockquote", "footer")


class _Reader(HTMLParser):
    """Reads the page that :func:`memgraft.report.render` makes; knows its elements and no others."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.text = ""
        self.row: list[str] = []
        self.numbers: list[bool] = []
        self.inside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("meta", "br"):
            return
        self.inside.append(tag)
        if tag in ("h1", "h2", "tr", "td", "th", "b", *_BLOCKS) or dict(attrs).get("class") == "number":
            self._flush()
        if tag in ("table", "ul") and self.lines and self.lines[-1]:
            self.lines.append("")
        if tag in ("td", "th"):
            self.numbers.append(dict(attrs).get("class") == "n")

    def handle_endtag(self, tag: str) -> None:
        self.inside.pop()
        if tag in ("h1", "h2"):
            self.lines += [f"{'#' * int(tag[1])} {self._taken()}", ""]
        elif tag in ("td", "th"):
            # Keys of code hold runs of spaces, which Markdown would fold.
            text, self.text = self.text.strip(), ""
            self.row.append(_RUN.sub(lambda run: "\N{NO-BREAK SPACE}" * len(run[0]), text).replace("|", "\\|"))
        elif tag == "tr":
            self.lines.append(f"| {' | '.join(self.row)} |")
            if self.inside[-1] == "thead":
                self.lines.append(f"|{'|'.join('--:' if number else '---' for number in self.numbers)}|")
            self.row, self.numbers = [], []
        elif tag in ("table", "ul"):
            self.lines.append("")
        elif tag == "li":
            self.lines.append(f"- {self._taken()}")
        elif tag == "span":
            # A tile is a value in <b> and its name in <span>.
            value, _, name = self._taken().partition(": ")
            self.lines.append(f"- {name}: {value}")
        elif tag == "b" and "blockquote" not in self.inside and "p" not in self.inside:
            self.text += ": "
        elif tag in ("div", *_BLOCKS):
            self._flush()

    def handle_data(self, data: str) -> None:
        if not any(tag in _SKIPPED for tag in self.inside):
            self.text += data

    def _taken(self) -> str:
        text, self.text = " ".join(self.text.split()), ""
        return text

    def _flush(self) -> None:
        if text := self._taken():
            self.lines += [text, ""]


def markdown(page: str) -> str:
    """The page of :func:`memgraft.report.render` as Markdown."""
    reader = _Reader()
    reader.feed(page)
    reader.close()
    out: list[str] = []
    for line in reader.lines:
        if line or (out and out[-1]):
            out.append(line)
    return "\n".join(out).rstrip() + "\n"
