"""The page of what a graft does to a text."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from memgraft.report import tokens_page

HIT = {"bank": "/banks/law", "gate": {1: 0.25}, "injected": {1: 0.031}}
MISS = {"order": 0, "match": None, "row": None, "bank": None, "gate": {1: 0.5}, "injected": {1: 0.0}, "effect": None}
TOKENS = [
    {"text": "<the", **MISS},
    {"text": ' "cat', "order": 2, "match": 'the "cat', "row": 7, "effect": 0.5, **HIT},
    {"text": " sat", "order": 3, "match": "the cat sat", "row": 9, "effect": -4.0, **HIT},
    {"text": "&", "order": 1, "match": "&", "row": 0, "effect": None, **HIT},
]


class Spans(HTMLParser):
    """Collects the tokens' spans, and checks that every element is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.spans: list[tuple[dict[str, str | None], str]] = []

    def handle_starttag(self, tag, attrs):
        if tag != "meta":
            self.open.append(tag)
        if tag == "span":
            self.spans.append((dict(attrs), ""))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "span":
            attributes, text = self.spans[-1]
            self.spans[-1] = attributes, text + data


def test_tokens_their_matches_and_their_colours():
    page = tokens_page("<the> cat", TOKENS, tool="memgraft 0")
    parser = Spans()
    parser.feed(page)
    assert not parser.open
    assert [text for _, text in parser.spans] == ["<the", ' "cat', " sat", "&"]
    miss, helps, harms, last = (attributes for attributes, _ in parser.spans)
    assert miss == {}
    assert helps["title"] == "order 2: 'the \"cat', row 7, +0.5000 nats"
    # Half a nat has half of the full colour; four nats have it all.
    assert helps["style"] == "background: rgba(18, 87, 184, 0.30)"
    assert harms["style"] == "background: rgba(184, 68, 107, 0.60)"
    assert "style" not in last
    assert "4 tokens, 3 with a row" in page
    assert "Sum of the effects: \N{MINUS SIGN}3.5000 nats" in page
    assert "<td>law</td>" in page


@pytest.mark.parametrize("tokens", [[], [{"text": "a", **MISS}]])
def test_a_text_that_finds_nothing(tokens):
    page = tokens_page("a", tokens, tool="memgraft 0")
    assert "0 with a row" in page
    assert "Sum of" not in page
