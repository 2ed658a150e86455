"""Arms that need no donor, and comparison files: parity with slow twins, causality, typed errors."""

import collections
import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from experiment_cases import RECIPE, make_material, make_place
from grafted_models import CACHE
from memgraft.cli.app import build_app
from memgraft.errors import ConfigError, CorpusError
from memgraft.experiments import ARMS, Recipe, build_recipient, held_out_loss, read_comparison, sources
from memgraft.experiments.mixture import num_experts_for
from memgraft.experiments.train import added_parameters, arm_collator, build_arm, costs
from memgraft.report import build_facts, render
from memgraft.torch import graft_layers


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("experiment"))


@pytest.fixture(scope="module")
def material(place):
    return make_material(place)


def slow_counts(material, half):
    """Next tokens by row, document by document; of documents outside ``half`` where one is given."""
    corpus, counts = material.train.corpus, collections.defaultdict(collections.Counter)
    for number in range(corpus.num_documents):
        if half is not None and number % 2 == half:
            continue
        tokens = corpus.document(number)
        rows, _ = material.bank.index.lookup(tokens)
        for row, following in zip(rows[:-1].tolist(), tokens[1:].tolist(), strict=True):
            if row >= 0:
                counts[row][following] += 1
    return counts


def test_next_token_counts_are_those_of_a_slow_count(material):
    num_rows = material.bank.num_rows
    mixture = sources.count_mixture(material.bank, material.train.corpus, at_most=4)
    assert mixture.tokens.shape == (3 * num_rows, 4)
    for part, half in enumerate((None, 0, 1)):
        counts = slow_counts(material, half)
        assert len(counts) > 20
        for row in range(num_rows):
            top = sorted(counts[row].items(), key=lambda item: (-item[1], item[0]))[:4]
            total = sum(number for _, number in top)
            found = mixture.weights[part * num_rows + row]
            assert mixture.tokens[part * num_rows + row, : len(top)].tolist() == [token for token, _ in top]
            np.testing.assert_allclose(found[: len(top)], [number / total for _, number in top], rtol=1e-6)
            assert not found[len(top) :].any()


def test_training_reads_no_count_of_its_own_half(material):
    num_rows = material.bank.num_rows
    collate = arm_collator(ARMS["counts"], material)
    plain = arm_collator(ARMS["graft"], material)
    seen = set()
    for window in range(len(material.train)):
        example = material.train[window]
        moved, rows = collate([example])["memgraft"].rows[0], plain([example])["memgraft"].rows[0]
        halves = material.train.halves(window)
        for place in range(RECIPE.seq_len):
            if rows[place] < 0:
                assert moved[place] == rows[place]
                continue
            seen.add(int(halves[place]))
            # Mixture 1 holds what lies outside half 0, mixture 2 what lies outside half 1.
            assert moved[place] == rows[place] + (1 + halves[place]) * num_rows
    assert seen == {0, 1}
    starts = material.train.corpus.document_starts
    first = int(starts[1]) // RECIPE.seq_len
    assert set(material.train.halves(first).tolist()) == {0, 1}


def test_own_embeddings_are_the_mean_over_the_key(material):
    model = build_arm(ARMS["own_embeddings"], RECIPE, material, seed=1)
    rows = sources.RecipientRows(model.get_input_embeddings(), sources.key_mixture(material.bank), 1)
    weight = model.get_input_embeddings().weight.detach().numpy()
    chosen = np.arange(0, material.bank.num_rows, 7, dtype=np.int32)
    found = rows.floats(chosen)
    for place, row in enumerate(chosen):
        expected = weight[list(material.bank.index.key(int(row)))].mean(0)
        np.testing.assert_allclose(found[place, 0], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["counts", "own_embeddings"])
def test_rows_follow_the_recipient_and_take_no_gradient(material, name):
    model = build_arm(ARMS[name], RECIPE, material, seed=1)
    batch = arm_collator(ARMS[name], material)([material.train[0], material.train[1]])
    before = model(**batch).logits
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(-1.0)
    assert not torch.equal(model(**batch).logits, -before)
    (layer,) = graft_layers(model)["default"].values()
    assert layer.memory_value.weight.shape == (48, 48)


PLACED = [(name, into) for name, arm in ARMS.items() for into in ("residual", "values")[: 1 + arm.grafted]]


@pytest.mark.parametrize(("name", "into"), PLACED)
def test_no_position_sees_a_later_token_and_a_cache_changes_nothing(material, name, into):
    recipe = dataclasses.replace(RECIPE, into=into)
    model = build_arm(ARMS[name], recipe, material, seed=1).eval()
    collate = arm_collator(ARMS[name], material)
    changed = {key: value.clone() for key, value in material.train[2].items()}
    place = 15
    changed["input_ids"][place:] = (changed["input_ids"][place:] + 7) % 320
    with torch.no_grad():
        one, other = (model(**collate([example])).logits[0] for example in (material.train[2], changed))
        torch.testing.assert_close(one[:place], other[:place], rtol=0, atol=1e-5)
        assert not torch.allclose(one[place:], other[place:], atol=1e-3)
        ids = material.held_out[1]["input_ids"][None]
        whole, parts, cache = model(ids, use_cache=False).logits, [], None
        for start, stop in ((0, 9), (9, 10), (10, RECIPE.seq_len)):
            out = model(ids[:, start:stop], **{CACHE: cache}, use_cache=True)
            parts.append(out.logits)
            cache = getattr(out, CACHE)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-5)


def test_the_mlp_has_the_dense_parameters_of_the_graft(material):
    graft, mlp, plain = (build_arm(ARMS[name], RECIPE, material, seed=1) for name in ("graft", "mlp", "none"))
    added = added_parameters(graft)
    assert added["table"] > 0
    assert abs(added_parameters(mlp)["dense"] - added["dense"]) <= RECIPE.width
    assert added_parameters(plain) == {"dense": 0, "table": 0}
    facts = costs(ARMS["graft"], graft, material)
    assert facts["flops_per_token"] == 2 * added["dense"]
    assert facts["bank_bytes_per_hit"] == material.bank.bytes_per_row
    assert facts["table_bytes_per_miss"] == 4 * 2 * 32


def test_a_mixture_is_the_two_best_experts_of_each_position(material):
    model = build_arm(ARMS["moe"], RECIPE, material, seed=1)
    mixture = model.model.layers[RECIPE.site].mlp
    block = mixture.memgraft
    hidden = torch.randn(2, 5, RECIPE.width, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros_like(hidden)
    for b in range(2):
        for t in range(5):
            shares = (block.gate.weight @ hidden[b, t]).softmax(0)
            best = shares.argsort(descending=True)[:2]
            for expert in best:
                gate, up = (block.experts.gate_up_proj[expert] @ hidden[b, t]).chunk(2)
                out = block.experts.down_proj[expert] @ (torch.nn.functional.silu(gate) * up)
                expected[b, t] += out * shares[expert] / shares[best].sum()
    torch.testing.assert_close(mixture(hidden), expected, atol=1e-6, rtol=1e-4)


def test_the_mixture_has_the_parameters_of_the_graft_and_the_flops_of_its_mlp(material):
    graft, moe, plain = (build_arm(ARMS[name], RECIPE, material, seed=1) for name in ("graft", "moe", "none"))
    whole = [sum(p.numel() for p in model.parameters()) for model in (graft, moe, plain)]
    assert abs(whole[1] - whole[0]) <= 0.1 * (whole[0] - whole[2])
    added = added_parameters(moe)
    assert sum(added.values()) == whole[1] - whole[2]
    mixture = moe.model.layers[RECIPE.site].mlp
    assert added["dense"] == mixture.num_experts * RECIPE.width
    per_expert = sum(p[0].numel() for p in mixture.memgraft.experts.parameters())
    assert 2 * per_expert == 3 * RECIPE.width * RECIPE.ffn_width
    assert costs(ARMS["moe"], moe, material)["flops_per_token"] == 2 * added["dense"]
    with pytest.raises(ConfigError, match="they cannot be matched"):
        num_experts_for(1000, 48, 640)
    with pytest.raises(ConfigError, match="divisible by 2"):
        num_experts_for(100_000, 48, 65)


def test_the_balance_of_experts_is_in_the_training_loss_alone(material):
    model = build_arm(ARMS["moe"], RECIPE, material, seed=1)
    batch = arm_collator(ARMS["moe"], material)([material.train[0]])
    train, test = model.train()(**batch), model.eval()(**batch)
    assert torch.equal(train.logits, test.logits)
    router = model.model.layers[RECIPE.site].mlp.memgraft.gate
    seen = []
    handle = router.register_forward_hook(lambda module, args, out: seen.append(out[0]))
    model(**batch)
    handle.remove()
    shares, number = seen[0].softmax(-1), seen[0].shape[-1]
    chosen = torch.nn.functional.one_hot(shares.topk(2).indices, number).float().mean(0)
    balance = (chosen * shares.mean(0)).sum() * number
    assert (train.loss - test.loss).item() == pytest.approx(0.001 * balance.item(), rel=1e-3)
    model.train()(**batch).loss.backward()
    assert router.weight.grad.abs().max() > 0


def test_several_sites_and_taps_and_places_are_those_of_the_recipe(material):
    recipe = dataclasses.replace(RECIPE, sites=(0, 1), taps=(2, 2), into="values", gate="none")
    model = build_arm(ARMS["graft"], recipe, material, seed=1)
    layers = graft_layers(model)["default"]
    assert list(layers) == [0, 1]
    assert {layer.target_dim for layer in layers.values()} == {RECIPE.width}
    assert {layer.gate_kind for layer in layers.values()} == {"none"}
    for name in ("counts", "trainable_donor", "one_slot", "shuffled"):
        assert list(graft_layers(build_arm(ARMS[name], recipe, material, seed=1))["default"]) == [0, 1]
    for name in ("mlp", "moe"):
        arm = build_arm(ARMS[name], recipe, material, seed=1)
        where = {key.split(".")[2] for key in arm.state_dict() if ".memgraft." in key}
        assert where == {"0", "1"}
        of_graft, found = added_parameters(model), added_parameters(arm)
        wanted = of_graft["dense"] if name == "mlp" else sum(of_graft.values())
        assert abs(sum(found.values()) - wanted) <= 0.1 * wanted


def test_settings_that_came_later_leave_older_experiments_as_they_are():
    assert not set(RECIPE.to_dict()) & {"sites", "taps", "into", "gate", "recipient", "trained", "lora_rank"}
    later = dataclasses.replace(RECIPE, sites=(0, 1), into="values")
    assert later.to_dict()["sites"] == [0, 1]
    assert Recipe(**later.to_dict()) == later


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A recipient that was trained elsewhere."""
    folder = tmp_path_factory.mktemp("pretrained") / "recipient"
    build_recipient(RECIPE, vocab_size=320, eos_id=0, seed=9).save_pretrained(folder)
    return folder


def attached(pretrained, trained, **changes):
    same = {"seq_len": 24, "batch_size": 4, "table_size": 251, "fallback_dim": 32}
    few = {"curve_windows": 2, "curve_points": 2, "held_out_windows": 6, "peak_lr": 0.01}
    return {**same, **few, "recipient": str(pretrained), "trained": trained, **changes}


@pytest.mark.parametrize("name", list(ARMS))
def test_on_a_pretrained_recipient_every_arm_starts_as_the_recipient(material, pretrained, name):
    if name == "moe":
        return
    plain = build_recipient(Recipe(**attached(pretrained, "all")), vocab_size=320, eos_id=0, seed=0)
    model = build_arm(ARMS[name], Recipe(**attached(pretrained, "graft")), material, seed=3)
    batch = arm_collator(ARMS[name], material)([material.train[0]])
    ids = material.train[0]["input_ids"][None]
    assert torch.equal(model(**batch).logits, plain(input_ids=ids).logits)
    trained = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(".memgraft." in key for key in trained)
    assert bool(trained) == (name != "none")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT reads transformers' old name
@pytest.mark.parametrize("trained", ["graft", "lora"])
def test_a_pretrained_recipient_is_compared(place, pretrained, tmp_path, trained):
    changes = {"arms": ["none", "graft", "mlp"], "steps": 4, "recipe": attached(pretrained, trained)}
    results = read_comparison(comparison_file(place, tmp_path / "a.yaml", **changes)).run()
    assert results["same_start"]
    assert results["same_order"]
    none, graft, mlp = results["arms"]
    assert none["tokens"] == (0 if trained == "graft" else 4 * 96)
    assert (none["tokens_per_second"] == 0) == (trained == "graft")
    assert (none["costs"]["training_flops_per_token"] == 0) == (trained == "graft")
    assert (none["order_fingerprint"] is None) == (trained == "graft")
    assert graft["order_fingerprint"] == mlp["order_fingerprint"]
    if trained == "graft":
        assert graft["memory_off"]["overall"] == pytest.approx(none["held_out"]["overall"], abs=1e-6)
    assert graft["held_out"]["overall"] != pytest.approx(none["held_out"]["overall"], abs=1e-4)
    kept = tmp_path / "run" / "model"
    assert (kept / "graft" / "graft.json").is_file()
    assert (kept / "adapter").is_dir() == (trained == "lora")
    assert not (kept / "recipient").exists()


def test_a_recipient_that_does_not_fit_is_refused_before_training(place, pretrained, tmp_path):
    for changes, message in (
        ({"site": 7}, "site 7: expected a block from 0 to 1"),
        ({"recipient": "nowhere"}, "recipient: expected a transformers folder"),
        ({"width": 64}, "width: a pretrained recipient has its own sizes"),
    ):
        file = comparison_file(place, tmp_path / "a.yaml", recipe=attached(pretrained, "graft", **changes))
        with pytest.raises(ConfigError, match=message):
            read_comparison(file).run()
    with pytest.raises(ConfigError, match="trained: expected all of a recipient from scratch"):
        Recipe(trained="lora")
    file = comparison_file(place, tmp_path / "a.yaml", arms=["moe"], recipe=attached(pretrained, "all"))
    with pytest.raises(ConfigError, match="'moe' replaces MLPs"):
        read_comparison(file).run()


def test_one_slot_reads_the_same_embedding_everywhere(material):
    model = build_arm(ARMS["one_slot"], RECIPE, material, seed=1)
    (layer,) = graft_layers(model)["default"].values()
    tokens = material.train[0]["input_ids"][None]
    embedded = layer.fallback(tokens, torch.zeros_like(tokens), tokens.shape[1])
    assert torch.equal(embedded, embedded[:1].expand_as(embedded))
    assert layer.fallback.table.weight.shape[0] == 16


def test_trainable_rows_start_at_the_donor(material):
    model = build_arm(ARMS["trainable_donor"], RECIPE, material, seed=1)
    (layer,) = graft_layers(model)["default"].values()
    rows = np.arange(material.bank.num_rows, dtype=np.int32)
    np.testing.assert_array_equal(layer.rows.weight.detach().numpy(), material.bank.floats(rows)[:, 0])
    assert layer.rows.weight.requires_grad


def test_losses_by_order_and_decile_are_those_of_each_position(material):
    model = build_recipient(RECIPE, vocab_size=320, eos_id=0, seed=3)
    found = held_out_loss(model, material.held_out, [0, 3], material.bank, grafted=False, batch_size=2, bf16=False)
    result = found.to_dict()
    counts = [material.bank.index.count(row) for row in range(material.bank.num_rows)]
    ranked = sorted(range(len(counts)), key=lambda row: (-counts[row], row))
    decile = {row: rank * 10 // len(ranked) + 1 for rank, row in enumerate(ranked)}
    orders, deciles = collections.defaultdict(list), collections.defaultdict(list)
    for window in (0, 3):
        tokens = material.held_out.tokens(window)
        rows, found_orders = material.bank.index.lookup(
            tokens.astype(np.uint32)[None], segments=material.held_out.segments(window)[None]
        )
        with torch.no_grad():
            logits = model(torch.from_numpy(tokens)[None]).logits[0]
        for place in range(RECIPE.seq_len - 1):
            loss = -torch.log_softmax(logits[place], dim=0)[tokens[place + 1]].item()
            orders[int(found_orders[0, place])].append(loss)
            if rows[0, place] >= 0:
                deciles[decile[int(rows[0, place])]].append(loss)
    for entries, name, groups in (("by_order", "order", orders), ("by_count_decile", "decile", deciles)):
        for entry in result[entries]:
            losses = groups.get(entry[name], [])
            assert entry["tokens"] == len(losses)
            assert entry["loss"] == (pytest.approx(np.mean(losses), abs=1e-5) if losses else None)


def comparison_file(place, path, **changes):
    facts = {
        "bank": str(place / "bank"), "train": str(place / "training-tokens"),
        "held_out": str(place / "held-out-tokens"),
        "tokenizer": str(place / "tokenizer.json"), "out": "run", "arms": ["none", "graft", "counts", "mlp"],
        "seeds": [0], "steps": 3,
        "recipe": {name: value for name, value in RECIPE.to_dict().items() if value is not None}, **changes,
    }  # fmt: skip
    path.write_text(json.dumps({name: value for name, value in facts.items() if value is not None}))
    return path


@pytest.mark.slow
def test_compare_runs_the_file(place, tmp_path):
    file = comparison_file(place, tmp_path / "experiment.yaml")
    result = CliRunner().invoke(build_app(), ["compare", str(file), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    results = json.loads(result.stdout)
    assert [entry["arm"] for entry in results["arms"]] == ["none", "graft", "counts", "mlp"]
    assert [(entry["first"], entry["second"]) for entry in results["comparisons"]] == [
        ("graft", "counts"), ("graft", "mlp"), ("graft", "none"),
    ]  # fmt: skip
    assert results["same_start"]
    assert results["same_order"]
    assert {"by_order", "by_count_decile"} <= set(results["arms"][0]["held_out"])
    assert (tmp_path / "run" / "results.json").is_file()


def losses(results):
    return {(entry["arm"], entry["seed"]): entry["held_out"]["overall"] for entry in results["arms"]}


@pytest.mark.slow
def test_processes_find_what_one_process_finds(place, tmp_path):
    settings = {"arms": ["none", "graft"], "seeds": [0, 1], "steps": 2}
    alone = read_comparison(comparison_file(place, tmp_path / "a.yaml", out="alone", **settings))
    apart = read_comparison(comparison_file(place, tmp_path / "b.yaml", out="apart", **settings))
    expected = alone.run()
    assert apart.run(processes=2, seconds=0)["unfinished"] == [
        {"arm": arm, "seed": seed} for seed in (0, 1) for arm in ("none", "graft")
    ]
    seen = []

    def look(phase, done, total):
        if phase == "train arms":
            seen.append(len(json.loads((apart.out / "results.json").read_text())["arms"]) >= done)

    found = apart.run(processes=2, progress=look)
    assert seen == [True] * 4
    assert found["unfinished"] == []
    assert losses(found) == pytest.approx(losses(expected), rel=1e-6)
    assert (tmp_path / "apart" / "model" / "graft").is_dir()


@pytest.mark.slow
def test_domains_and_moved_tokens_are_in_the_results(place, tmp_path):
    domains = {"same": str(place / "held-out-tokens"), "other": str(place / "other-tokens")}
    file = comparison_file(place, tmp_path / "a.yaml", arms=["none", "graft"], steps=2, domains=domains)
    results = read_comparison(file).run()
    for entry in results["arms"]:
        held = entry["held_out"]
        same, other = held["by_domain"]
        assert (same["domain"], other["domain"]) == ("same", "other")
        assert same["loss"] == pytest.approx(held["overall"])
        assert other["loss"] != same["loss"]
        assert held["bits_per_byte"] == pytest.approx(held["overall"] / math.log(2) / results["bytes_per_token"])
        assert len(entry["curve_seconds"]) == len(entry["held_out_curve"]) == 2
        assert entry["curve_seconds"] == sorted(entry["curve_seconds"])
    assert results["moved"]["seeds"] == 1
    assert results["moved"]["gained"] or results["moved"]["lost"]


TASK = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
doc_to_choice: choices
metric_list: [{{metric: acc}}]
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the harness's own warnings are not ours
def test_every_arm_answers_the_tasks(place, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tasks").mkdir()
    words = (place / "held-out" / "20.txt").read_text().split()
    questions = [
        {"question": " ".join(words[n : n + 6]), "choices": [words[n + 6], words[n + 9]], "answer": 0} for n in range(8)
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    (tmp_path / "tasks" / "a.yaml").write_text(TASK.format(data=tmp_path / "data.jsonl"))
    file = comparison_file(place, tmp_path / "a.yaml", arms=["none", "graft"], steps=1, tasks="tasks")
    results = read_comparison(file).run()
    for entry in results["arms"]:
        assert 0 <= entry["tasks"]["tiny_choice"]["acc,none"] <= 1
    page = render(build_facts(experiment=results))
    assert "tiny_choice" in page
    with pytest.raises(ConfigError, match="expected a folder with task files"):
        read_comparison(comparison_file(place, tmp_path / "a.yaml", tasks=str(place))).run()


def test_a_domain_that_the_keys_come_from_is_refused(place, tmp_path):
    domains = {"plays": str(place / "training-tokens")}
    file = comparison_file(place, tmp_path / "a.yaml", domains=domains)
    with pytest.raises(CorpusError, match="mined from domain 'plays'"):
        read_comparison(file).run()


@pytest.mark.slow
def test_an_arm_that_comes_too_late_is_left_and_taken_up(place, tmp_path):
    comparison = read_comparison(comparison_file(place, tmp_path / "a.yaml", arms=["none", "graft"], steps=2))
    comparison = dataclasses.replace(comparison, arms=("none",))
    first = comparison.run()
    both = dataclasses.replace(comparison, arms=("none", "graft"))
    late = both.run(seconds=0)
    assert build_facts(experiment=late)["not_measured"][0] == "Not run yet: graft (seed 0); the same call trains them."
    assert losses(late) == losses(first)
    assert late["unfinished"] == [{"arm": "graft", "seed": 0}]
    assert len(losses(both.run())) == 2


def test_numbers_of_a_comparison_are_read_as_people_write_them(place, tmp_path):
    file = comparison_file(place, tmp_path / "a.yaml", steps="3k", seeds="0-2", recipe={"seq_len": "1e2"})
    comparison = read_comparison(file)
    assert (comparison.steps, comparison.seeds, comparison.recipe.seq_len) == (3000, (0, 1, 2), 100)
    with pytest.raises(ConfigError, match=r"a\.yaml: steps: expected a number such as 3000"):
        read_comparison(comparison_file(place, tmp_path / "a.yaml", steps="3x"))


def test_processes_need_steps(place, tmp_path):
    comparison = read_comparison(comparison_file(place, tmp_path / "a.yaml", steps=None))
    with pytest.raises(ConfigError, match="expected steps beside 2 processes"):
        comparison.run(processes=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bnak": "x"}, "bnak: unknown; known are bank"),
        ({"recipe": {"widht": 3}}, "recipe: widht: unknown"),
        ({"recipe": {"width": "wide"}}, "recipe: width: expected a number"),
        ({"recipe": {"into": "keys"}}, "recipe: into: expected one of"),
        ({"recipe": {"gate": 3}}, "recipe: gate: expected a word"),
        ({"recipe": {"sites": "0-2"}}, "recipe: sites: expected a list of blocks"),
        ({"recipe": {"sites": [1, 0]}}, "recipe: sites: expected distinct ascending blocks"),
        ({"recipe": {"taps": [1]}}, "recipe: taps: expected one for each of the sites"),
        ({"recipe": {"recipient": 3}}, "recipe: recipient: expected a path"),
        ({"bank": None}, "expected bank, found none"),
        ({"bank": 3}, "bank: expected a path"),
        ({"seeds": 3}, "seeds: expected a list of int"),
        ({"intervals": "windows"}, "intervals: expected any or seeds"),
        ({"intervals": "seeds"}, r"seeds: expected two or more, since intervals over seeds are asked for, found \[0\]"),
        ({"domains": ["a"]}, "domains: expected a mapping of names to paths"),
        ({"seeds": [True]}, "seeds: expected a list of int"),
        ({"arms": ["graft", "magic"]}, "are unknown; known are"),
        ({"steps": 0}, "steps: expected a whole number"),
        ({"minutes": "long"}, "minutes: expected a number"),
    ],
)
def test_a_bad_comparison_is_refused_before_anything_is_opened(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        read_comparison(comparison_file(tmp_path / "nowhere", tmp_path / "experiment.yaml", **changes))


def test_the_study_file_is_read():
    comparison = read_comparison(Path(__file__).parent.parent / "docs" / "study" / "config-main.yaml")
    assert comparison.steps * comparison.recipe.tokens_per_step >= 1_500_000
    assert len(comparison.seeds) == 3


def test_what_is_no_mapping_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("- 1\n- 2\n")
    (tmp_path / "b.yaml").write_text("a: [1\n")
    with pytest.raises(ConfigError, match="expected a mapping of settings, found list"):
        read_comparison(tmp_path / "a.yaml")
    for bad in ("b.yaml", "c.yaml"):
        with pytest.raises(ConfigError, match="expected a YAML file"):
            read_comparison(tmp_path / bad)
