"""The page: what it says for good, bad and no results, and that it holds nothing foreign."""

import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from memgraft.report import build_facts, render, write_report
from memgraft.report.plots import _apart

COVERAGE = {
    "held-out text": {"positions": 1000, "hits": {"2": 300, "3": 200}, "misses": 500, "unique_rows": 90},
}


def experiment(low, high, seeds=(0,)):
    arms = [
        {
            "arm": name,
            "label": name,
            "seed": seed,
            "held_out_curve": [[10, 6.0], [20, 5.5]],
            "held_out": {"overall": 5.0 + number, "hit": 4.0, "miss": None},
            "tokens_per_second": 1000.0,
            "num_parameters": 10**6,
        }
        for number, name in enumerate(("none", "graft", "shuffled"))
        for seed in seeds
    ]
    comparison = {
        "first": "graft",
        "second": "shuffled",
        "seeds": list(seeds),
        "over": "held-out windows of one seed",
        "interval": {"mean": (low + high) / 2, "low": low, "high": high, "pairs": 40},
        "difference": {"overall": (low + high) / 2, "hit": -0.2, "miss": None},
    }
    return {
        "arms": arms,
        "comparisons": [comparison],
        "tokens_per_arm": 5000,
        "same_order": True,
        "same_start": True,
        "settings": {"recipe": {"seq_len": 64, "batch_size": 4}},
    }


class Balanced(HTMLParser):
    """Checks that elements close in order."""

    void = frozenset({"meta", "br"})

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(-0.4, -0.2, "The right rows help"), (0.1, 0.3, "The right rows hurt"), (-0.1, 0.1, "No difference can be told")],
)
def test_the_verdict_follows_the_interval(low, high, words):
    page = render(build_facts(experiment=experiment(low, high)))
    assert words in page
    assert ("verdict bad" in page) == (high >= 0)


def test_graft_minus_shuffled_comes_first():
    page = render(build_facts(experiment=experiment(-0.4, -0.2), coverage=COVERAGE))
    assert re.findall(r"<h2>([^<]*)</h2>", page)[0] == "Graft minus shuffled"


def test_one_seed_is_said_and_three_are_not():
    one = build_facts(experiment=experiment(-0.4, -0.2))
    three = build_facts(experiment=experiment(-0.4, -0.2, seeds=(0, 1, 2)))
    assert "this run has one" in one["not_measured"][0]
    assert not any("this run has one" in entry for entry in three["not_measured"])


def test_arms_that_differ_in_more_than_the_graft_are_called_out():
    unequal = {**experiment(-0.4, -0.2), "same_order": False}
    assert "NOT in this run" in render(build_facts(experiment=unequal))
    assert "NOT in this run" not in render(build_facts(experiment=experiment(-0.4, -0.2)))


def test_text_from_files_is_escaped():
    sample = {"prompt": "<script>", "text": "a & b", "new_tokens": 3, "tokens_per_second": 2.0, "hit_share": 0.5}
    page = render(build_facts(sample=sample, title="<b>", material={"text": "<i>"}))
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "a &amp; b" in page


def test_the_page_is_whole_and_self_contained(tmp_path):
    facts = build_facts(experiment=experiment(-0.4, -0.2), coverage=COVERAGE)
    report_json, report_html = write_report(tmp_path, facts)
    page = report_html.read_text()
    parser = Balanced()
    parser.feed(re.sub(r"<!--.*?-->|<\?xml.*?\?>|<!DOCTYPE.*?>", "", page, flags=re.S))
    assert parser.open == []
    assert "<script" not in page
    assert not re.search(r'(?:src|href)="(?!#)', page)
    assert report_json.is_file()


def test_crowded_labels_are_set_apart_around_their_mean():
    assert _apart([1.0, 1.0, 5.0], 0.5) == [0.75, 1.25, 5.0]
    assert _apart([1.0, 2.0], 0.5) == [1.0, 2.0]
    spread = _apart([1.0, 1.1, 1.6, 1.7], 1.0)
    assert [high - low for low, high in pairwise(spread)] == pytest.approx([1.0] * 3)
    assert sum(spread) == pytest.approx(5.4)


def test_a_report_without_facts_is_still_a_page():
    page = render(build_facts())
    assert "Not measured here" in page
    assert "<svg" not in page


def test_the_fallback_share_is_stated_in_words():
    assert "50.0 % of held-out positions" in render(build_facts(coverage=COVERAGE))
