"""The page: what it says for good, bad and no results, and that it holds nothing foreign."""

import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from memgraft.controls import ARMS
from memgraft.report import build_facts, render, write_report
from memgraft.report.markdown import markdown
from memgraft.report.plots import apart, curves_plot
from memgraft.report.verdict import verdict

COVERAGE = {
    "a.bin": {
        "positions": 1000,
        "hits": {"2": 300, "3": 200},
        "misses": 500,
        "unique_rows": 90,
        "mined_from_it": True,
    },
}


def experiment(low, high, seeds=(0, 1, 2), arms=("none", "engram", "graft", "shuffled"), **changes):
    """Results in which the graft differs from every other arm by the same interval."""
    results = [
        {
            "arm": name,
            "label": name,
            "seed": seed,
            "held_out_curve": [[10, 6.0], [20, 5.5]],
            "held_out": {"overall": 5.0 + number, "hit": 4.0, "miss": None},
            "tokens_per_second": 1000.0,
            "num_parameters": 10**6,
            "device": "cpu",
        }
        for number, name in enumerate(arms)
        for seed in seeds
    ]
    comparisons = [
        {
            "first": "graft",
            "second": name,
            "seeds": list(seeds),
            "over": "seeds" if len(seeds) > 1 else "held-out windows of one seed",
            "interval": {"mean": (low + high) / 2, "low": low, "high": high, "pairs": len(seeds)},
            "difference": {"overall": (low + high) / 2, "hit": -0.2, "miss": None},
        }
        for name in ("shuffled", "engram", "none")
        if name in arms and "graft" in arms
    ]
    return {
        "arms": results,
        "comparisons": comparisons,
        "tokens_per_arm": 5000,
        "unigram_loss": 20.0,
        "same_order": True,
        "same_start": True,
        "settings": {"recipe": {"seq_len": 64, "batch_size": 4}},
        **changes,
    }


def against(arm, low, high):
    """An experiment that helps against all arms but ``arm``, where the interval is this one."""
    facts = experiment(-0.4, -0.2)
    (entry,) = (entry for entry in facts["comparisons"] if entry["second"] == arm)
    entry["interval"] |= {"low": low, "high": high}
    return facts


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
    ("facts", "kind", "words"),
    [
        (experiment(-0.4, -0.2), "helps", "The graft helps."),
        (experiment(0.1, 0.3), "hurts", "The graft hurts."),
        (
            experiment(-0.1, 0.1),
            "unclear",
            "No difference is shown to no memory, the fallback alone or its rows shuffled.",
        ),
        (against("none", 0.01, 0.03), "unclear", "Its held-out loss is higher than with no memory."),
        (against("engram", -0.3, 0.001), "unclear", "No difference is shown to the fallback alone."),
        (experiment(-0.4, -0.2, seeds=(0,)), "none", "has 1 seed in all arms; a verdict needs 3"),
        (experiment(-0.4, -0.2, seeds=(0, 1)), "none", "has 2 seeds in all arms; a verdict needs 3"),
        (experiment(-0.4, -0.2, arms=("graft", "shuffled")), "none", "these arms were not run: none, engram."),
        (experiment(-0.4, -0.2, arms=("none", "shuffled")), "none", "the arm 'graft' was not run"),
        (experiment(-0.4, -0.2, same_start=False), "none", "the arms did not start equal"),
    ],
)
def test_the_verdict_follows_the_intervals(facts, kind, words):
    found = verdict(facts)
    assert found.kind == kind
    assert words in " ".join(found.sentences)
    assert ("helps." in " ".join(found.sentences)) == (kind == "helps")


def test_arms_that_are_not_finished_are_listed():
    waiting = [{"arm": "own_embeddings", "seed": 1}, {"arm": "own_embeddings", "seed": 2}, {"arm": "mlp", "seed": 0}]
    found = build_facts(experiment=experiment(-0.4, -0.2, unfinished=waiting))
    said = "Not run yet: own embeddings (seeds 1, 2), mlp (seed 0); the same call trains them."
    assert found["not_measured"][0] == said
    assert said in render(found)
    assert not any("Not run yet" in line for line in build_facts(experiment=experiment(-0.4, -0.2))["not_measured"])


def test_arms_near_the_unigram_loss_are_named():
    sentences = " ".join(verdict(experiment(-0.4, -0.2, unigram_loss=6.0)).sentences)
    # Losses are 5, 6, 7 and 8 nats.
    assert "Undertrained: engram, graft, shuffled." in sentences
    assert "Undertrained" not in " ".join(verdict(experiment(-0.4, -0.2)).sentences)


def test_held_out_text_that_is_in_the_training_text_is_named():
    counts = {"num_documents": 20, "num_shared_documents": 1, "num_tokens": 900, "num_shared_tokens": 45}
    overlap = {**counts, "length": 32, "num_runs": 50, "num_shared_runs": 2, "share": 0.05}
    sentences = " ".join(verdict(experiment(-0.4, -0.2, overlap=overlap)).sentences)
    assert "The held-out text shares 1 of 20 documents and 4% of its runs of 32 tokens with the training" in sentences
    overlap |= {"num_shared_tokens": 0, "num_shared_runs": 0}
    assert "shares" not in " ".join(verdict(experiment(-0.4, -0.2, overlap=overlap)).sentences)


def test_graft_minus_shuffled_comes_first():
    page = render(build_facts(experiment=experiment(-0.4, -0.2), coverage=COVERAGE))
    assert re.findall(r"<h2>([^<]*)</h2>", page)[0] == "Graft minus shuffled"
    assert "The graft helps." in page


def test_what_is_not_measured_follows_from_what_is_there():
    one = build_facts(experiment=experiment(-0.4, -0.2, seeds=(0,)))["not_measured"]
    assert "bands" not in render(build_facts(experiment=experiment(-0.4, -0.2, seeds=(0,))))
    assert "bands go from the lowest seed" in render(build_facts(experiment=experiment(-0.4, -0.2)))
    three = build_facts(experiment=experiment(-0.4, -0.2, arms_not_run=["random"]))["not_measured"]
    assert "this run has one" in one[0]
    assert not any("this run has one" in entry for entry in three)
    assert "These arms: random." in three
    assert "Training on other devices than: cpu." in three
    on_gpu = experiment(-0.4, -0.2)
    for result in on_gpu["arms"]:
        result["device"] = "NVIDIA H100"
    assert "Training on other devices than: NVIDIA H100." in build_facts(experiment=on_gpu)["not_measured"]
    assert build_facts()["not_measured"][0] == "Training: no experiment is part of this report."


@pytest.mark.parametrize(
    ("mined", "words"),
    [
        (True, "the keys were mined from it, so this is no prediction"),
        (False, "the keys were not mined from it"),
        (None, "whether the keys were mined from it is not known"),
    ],
)
@pytest.mark.parametrize("shared", [None, 0.004, 0.2])
def test_the_coverage_sentence_follows_the_facts(mined, words, shared):
    stream = {**COVERAGE["a.bin"], "mined_from_it": mined, "shared_with_mined": shared}
    page = render(build_facts(coverage={"a.bin": stream}))
    if mined is False and shared == 0.2:
        words += ", but about 20% of it is in the text that was mined"
    assert f"of a.bin, 50.0 % of positions have none and use the fallback ({words})" in page
    assert "held-out" not in page.split("<h2>Coverage by order</h2>")[1].split("</section>")[0]


def test_arms_that_differ_in_more_than_the_graft_are_called_out():
    unequal = {**experiment(-0.4, -0.2), "same_order": False}
    assert "NOT in this run" in render(build_facts(experiment=unequal))
    assert "NOT in this run" not in render(build_facts(experiment=experiment(-0.4, -0.2)))


def test_groups_and_costs_are_those_of_the_arms():
    facts = experiment(-0.4, -0.2, seeds=(0, 1), arms=("none", "graft"))
    for result in facts["arms"]:
        loss = {"none": 4.0, "graft": 3.5}[result["arm"]] + 0.25 * result["seed"]
        result["held_out"]["by_order"] = [
            {"order": 0, "loss": loss, "tokens": 70}, {"order": 1, "loss": None, "tokens": 0},
        ]  # fmt: skip
        result["held_out"]["by_count_decile"] = [{"decile": 1, "loss": loss + 1, "tokens": 30}]
        result["costs"] = {
            "dense_parameters": 1234, "table_parameters": 0, "flops_per_token": 2468, "bank_bytes_per_hit": 64,
            "table_bytes_per_miss": 0,
        }  # fmt: skip
    page = render(build_facts(experiment=facts))
    cells = [re.findall(r"<td[^>]*>([^<]*)", row) for row in re.findall(r"<tr>(.*?)</tr>", page)]
    assert ["no match", "70", "4.1250", "\N{MINUS SIGN}0.5000"] in cells
    assert not any("order 1" in row for row in cells)  # nothing is of it
    assert ["decile 1 (most frequent keys)", "30", "5.1250", "\N{MINUS SIGN}0.5000"] in cells
    assert ["graft", "1,234", "0", "2,468", "64", "0"] in cells


def test_memory_off_and_gates_are_means_over_seeds():
    facts = experiment(-0.4, -0.2, seeds=(0, 1), arms=("none", "graft"))
    assert "Memory at work" not in render(build_facts(experiment=facts))
    for result in facts["arms"]:
        if result["arm"] == "graft":
            result["memory_off"] = {"overall": 7.0 + result["seed"], "hit": 1.0, "miss": None}
            result["gates"] = {"default/site1/hit/gate_mean": 0.25 + 0.5 * result["seed"]}
    page = render(build_facts(experiment=facts))
    cells = [re.findall(r"<td[^>]*>([^<]*)", row) for row in re.findall(r"<tr>(.*?)</tr>", page)]
    assert ["graft", "7.5000", "+1.5000", "0.500", "–", "–", "–"] in cells


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_means_over_seeds_are_spoken_of_where_there_are_several(seeds):
    facts = experiment(-0.4, -0.2, seeds=seeds, arms=("none", "graft"))
    for result in facts["arms"]:
        result["held_out"]["by_order"] = [{"order": 0, "loss": 4.0, "tokens": 70}]
        result |= {"memory_off": {"overall": 7.0, "hit": 1.0, "miss": None}, "gates": {}}
    page = render(build_facts(experiment=facts))
    assert "Memory at work" in page
    assert "Which tokens" in page
    assert page.count("means over seeds") == (3 if len(seeds) > 1 else 0)


@pytest.mark.parametrize(("curve", "said"), [(3, True), (76, False), (None, False)])
def test_a_curve_of_fewer_windows_than_the_table_says_so(curve, said):
    plan = {"plan": {"curve_windows": curve, "held_out_windows": 76}}
    page = render(build_facts(experiment=experiment(-0.4, -0.2, **plan)))
    assert ("points of the curves are over 3 held-out windows, the table over 76" in page) == said


def test_curves_are_means_in_bands_over_seeds():
    def svg(seeds):
        facts = experiment(-0.4, -0.2, seeds=seeds, arms=("none", "graft"))
        for result in facts["arms"]:
            result["held_out_curve"] = [[10, 6.0], [20, 5.0 + result["seed"]]]
        return curves_plot(facts["arms"], 256)

    bands = [svg(seeds).count('id="FillBetweenPolyCollection') for seeds in ((0,), (0, 1, 2))]
    assert bands == [0, 2]


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_curves_of_one_point_are_points(seeds):
    facts = experiment(-0.4, -0.2, seeds=seeds, arms=("none", "graft"))
    for result in facts["arms"]:
        result["held_out_curve"] = [[10, 6.0 + result["seed"]]]
    svg = curves_plot(facts["arms"], 256)
    for arm in ("none", "graft"):
        assert len(re.findall(f"<use [^>]*fill: {ARMS[arm].colour}", svg)) == 1


def test_a_bank_whose_donor_is_not_on_record_has_its_box():
    bank = {
        "num_rows": 3, "value_bytes": 96, "bytes_per_row": 32, "taps": [1], "dropped": {}, "rows_by_order": {"2": 3},
        "donor": {}, "dtype": "fp32", "rows": None,
    }  # fmt: skip
    assert "Rows whose donor is not on record, read after block 1" in render(build_facts(bank=bank))


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
    assert apart([1.0, 1.0, 5.0], 0.5) == [0.75, 1.25, 5.0]
    assert apart([1.0, 2.0], 0.5) == [1.0, 2.0]
    spread = apart([1.0, 1.1, 1.6, 1.7], 1.0)
    assert [high - low for low, high in pairwise(spread)] == pytest.approx([1.0] * 3)
    assert sum(spread) == pytest.approx(5.4)


def test_a_report_without_facts_is_still_a_page():
    page = render(build_facts())
    assert "Not measured here" in page
    assert "<svg" not in page


def test_markdown_has_the_words_and_tables_of_the_page():
    facts = experiment(-0.4, -0.2)
    for result in facts["arms"]:
        result["held_out"]["by_order"] = [{"order": 0, "loss": 5.0, "tokens": 10}]
    page = render(build_facts(coverage=COVERAGE, experiment=facts, title="a | b <i>"))
    text = markdown(page)
    cells = re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", page)
    rows = [line for line in text.splitlines() if line.startswith("|") and set(line) - set("|-:")]
    assert sum(len(re.split(r"(?<!\\\\)\|", row)) - 2 for row in rows) == len(cells) > 50
    assert text.startswith("# a | b <i>\n")
    for words in re.findall(r"<h2>(.*?)</h2>", page):
        assert f"## {words}" in text
    assert "The graft helps." in text
    assert "<svg" not in text
    assert "fill:" not in text


def test_moved_tokens_and_domains_are_shown():
    facts = experiment(-0.4, -0.2)
    for result in facts["arms"]:
        result["held_out"] |= {"by_order": [], "by_count_decile": []}
        result["held_out"]["by_domain"] = [{"domain": "plays", "loss": 4.25, "tokens": 77}]
    entry = {"key": " of the", "next": " <b>", "times": 3, "loss": 1.0, "loss_without": 2.5}
    code = {**entry, "key": ":\n    return", "next": "   "}
    facts["moved"] = {"first": "graft", "second": "none", "seeds": 2, "gained": [entry, code], "lost": []}
    page = render(build_facts(experiment=facts))
    text = markdown(page)
    # Spaces that follow one another are part of a key, in a browser too.
    assert "':\\n\xa0\xa0\xa0\xa0return' | '\xa0\xa0\xa0' |" in text
    assert re.search(r"\btd \{[^}]*white-space: pre-wrap", page)
    assert "| domain plays | 77 | 4.2500 |" in text
    assert "| ' of the' | ' <b>' | 3 | 1.0000 | 2.5000 | \N{MINUS SIGN}1.5000 |" in text
    assert "over 2 seeds" in text


def test_curves_are_drawn_against_what_was_recorded():
    facts = experiment(-0.4, -0.2)
    assert render(build_facts(experiment=facts)).count("FLOPs of training") == 0
    for result in facts["arms"]:
        result |= {"curve_seconds": [1.0, 2.0], "costs": {"training_flops_per_token": 100}}
    page = render(build_facts(experiment=facts))
    assert "Held-out loss over seconds of training" in page
    assert "Held-out loss over FLOPs of training" in page


def test_domains_of_a_stream_are_drawn_and_listed_below_it():
    domains = {
        "law": {"positions": 400, "hits": {"2": 40, "3": 20}},
        "code": {"positions": 600, "hits": {"2": 260, "3": 180}},
    }
    page = render(build_facts(coverage={"a.bin": {**COVERAGE["a.bin"], "domains": domains}}))
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", page, re.S)]
    assert [row for row in rows if row and row[0].startswith("a.bin")] == [
        ["a.bin", "1,000", "50.0 %", "90"],
        ["a.bin: law", "400", "15.0 %", "-"],
        ["a.bin: code", "600", "73.3 %", "-"],
    ]
    plot = page[page.index("Coverage by order of the longest match") :]
    assert all(text in plot for text in ("a.bin: law", "85.0 %", "a.bin: code", "26.7 %"))
