"""Windows, held-out loss, plans and arms, against slow ways of saying the same."""

import dataclasses
import json
import math
import shutil

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

import memgraft
from memgraft.corpus import write_sample
from memgraft.errors import ConfigError, CorpusError, FingerprintError, StorageError
from memgraft.experiments import (
    ARMS,
    Recipe,
    TokenWindows,
    arms_named,
    build_recipient,
    held_out_loss,
    run_experiment,
    spread_windows,
)
from memgraft.experiments.experiment import save_model, unigram_loss
from memgraft.experiments.models import start_fingerprint
from memgraft.experiments.recipe import weights_fingerprint
from memgraft.experiments.train import (
    Material,
    OrderRecorder,
    build_arm,
    build_optimizer,
    disk_errors,
    plain_collator,
)
from memgraft.harvesting import harvest
from memgraft.mining.origin import mined_from
from tiny import byte_bpe, tiny_donor, tiny_text

RECIPE = Recipe(
    width=32,
    num_blocks=2,
    num_heads=2,
    ffn_width=64,
    seq_len=24,
    batch_size=4,
    table_size=251,
    fallback_dim=32,
    curve_windows=4,
    curve_points=2,
    held_out_windows=6,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Tokens of two sets of documents, a tokenizer and a bank."""
    folder = tmp_path_factory.mktemp("experiments")
    for part, numbers in (("training", range(12)), ("held-out", range(20, 24))):
        (folder / part).mkdir()
        for number in numbers:
            (folder / part / f"{number}.txt").write_text(tiny_text(number, sentences=12))
    byte_bpe([tiny_text(number) for number in range(12)], 320).save(str(folder / "tokenizer.json"))
    for part in ("training", "held-out"):
        memgraft.tokenize_folder(
            folder / part, folder / "tokenizer.json", folder / f"{part}-tokens", eos="<|endoftext|>"
        )
    keys = memgraft.mine(memgraft.Corpus.open(folder / "training-tokens.bin"), budget=400)
    donor = tiny_donor(folder / "donor")
    harvest(keys, recipient_tokenizer=folder / "tokenizer.json", donor=donor, taps=(2,), out=folder / "bank")
    return folder


@pytest.fixture(scope="module")
def material(place):
    return Material(
        bank=memgraft.Bank.open(place / "bank"),
        train=TokenWindows(memgraft.Corpus.open(place / "training-tokens.bin"), RECIPE.seq_len),
        held_out=TokenWindows(memgraft.Corpus.open(place / "held-out-tokens.bin"), RECIPE.seq_len),
        vocab_size=320,
        eos_id=0,
        tokenizer=place / "tokenizer.json",
    )


def experiment(place, out, **changes):
    options = {
        "tokenizer": place / "tokenizer.json",
        "eos_id": 0,
        "recipe": RECIPE,
        "steps": 4,
        "arms": ("none", "graft"),
        **changes,
    }
    training = memgraft.Corpus.open(place / "training-tokens.bin")
    held_out = options.pop("held_out", None) or memgraft.Corpus.open(place / "held-out-tokens.bin")
    return run_experiment(memgraft.Bank.open(place / "bank"), training, held_out, out, **options)


def test_windows_are_the_corpus_in_order_with_its_documents(place, material):
    corpus = memgraft.Corpus.open(place / "training-tokens.bin")
    windows = material.train
    tokens = np.concatenate([windows.tokens(window) for window in range(len(windows))])
    np.testing.assert_array_equal(tokens, corpus.tokens(0, len(tokens)))
    owner = np.repeat(np.arange(corpus.num_documents), np.diff(corpus.document_starts.astype(np.int64)))
    crossings = 0
    for window in range(len(windows)):
        own = owner[window * RECIPE.seq_len : (window + 1) * RECIPE.seq_len]
        np.testing.assert_array_equal(windows.segments(window), own - own[0])
        crossings += own[0] != own[-1]
    assert crossings > 3, "some windows hold two documents"


def test_the_held_out_loss_is_the_plain_mean_split_by_hits(material):
    model = build_recipient(RECIPE, vocab_size=320, eos_id=0, seed=3)
    chosen = [0, 2, 5]
    found = held_out_loss(model, material.held_out, chosen, material.bank, grafted=False, batch_size=2, bf16=False)
    total, hits, misses = [], [], []
    for window in chosen:
        tokens = material.held_out.tokens(window)
        rows, _ = material.bank.index.lookup(
            tokens.astype(np.uint32)[None], segments=material.held_out.segments(window)[None]
        )
        with torch.no_grad():
            logits = model(torch.from_numpy(tokens)[None]).logits[0]
        for place in range(RECIPE.seq_len - 1):
            loss = -torch.log_softmax(logits[place], dim=0)[tokens[place + 1]].item()
            total.append(loss)
            (hits if rows[0, place] >= 0 else misses).append(loss)
    assert len(hits) > 5
    assert len(misses) > 5
    result = found.to_dict()
    assert result["overall"] == pytest.approx(np.mean(total), abs=1e-5)
    assert result["hit"] == pytest.approx(np.mean(hits), abs=1e-5)
    assert result["miss"] == pytest.approx(np.mean(misses), abs=1e-5)
    assert (result["num_hit_tokens"], result["num_miss_tokens"]) == (len(hits), len(misses))


def test_evaluation_leaves_the_training_mode_alone(material):
    model = build_recipient(RECIPE, vocab_size=320, eos_id=0, seed=3).train()
    held_out_loss(model, material.held_out, [0], material.bank, grafted=False, batch_size=2, bf16=False)
    assert model.training


@pytest.mark.parametrize("name", list(ARMS))
def test_every_arm_starts_from_the_same_recipient_and_trains(material, name):
    arm = ARMS[name]
    model = build_arm(arm, RECIPE, material, seed=5)
    plain = build_recipient(RECIPE, vocab_size=320, eos_id=0, seed=5)
    assert start_fingerprint(arm, RECIPE, material, 5, model) == weights_fingerprint(plain)
    with torch.no_grad():
        model.get_input_embeddings().weight[3] += 1
        assert start_fingerprint(arm, RECIPE, material, 5, model) != weights_fingerprint(plain)
        model.get_input_embeddings().weight[3] -= 1
    optimizer = build_optimizer(model, RECIPE)
    example = plain_collator([material.train[0], material.train[1]])
    model(**example).loss.backward()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer.step()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(before[key], value)}
    assert any(".memgraft." in key for key in changed) == (arm.grafted or name in ("mlp", "moe"))
    assert any(".memgraft." not in key for key in changed)


def test_graft_and_shuffled_differ_in_the_rows_alone(material):
    graft, shuffled = (build_arm(ARMS[name], RECIPE, material, seed=5) for name in ("graft", "shuffled"))
    ours, theirs = graft.state_dict(), shuffled.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    example = plain_collator([material.train[0]])
    with torch.no_grad():
        assert not torch.equal(graft(**example).logits, shuffled(**example).logits)


def test_the_recorder_tells_orders_apart(material):
    first, second = OrderRecorder(plain_collator), OrderRecorder(plain_collator)
    for window in (0, 1):
        first([material.train[window]])
        second([material.train[1 - window]])
    assert first.batches == second.batches[::-1] != second.batches


@pytest.mark.slow
def test_a_finished_experiment_is_read_and_a_changed_one_is_not(place, tmp_path):
    first = experiment(place, tmp_path / "out")
    marks = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/result.json")}
    assert len(marks) == 2
    assert experiment(place, tmp_path / "out") == first
    more = experiment(place, tmp_path / "out", arms=("none", "graft", "shuffled"))
    assert {path: path.stat().st_mtime_ns for path in marks} == marks, "an added arm leaves the finished ones alone"
    assert [result["arm"] for result in more["arms"]] == ["none", "graft", "shuffled"]
    with pytest.raises(ConfigError, match=r"steps: there 4, asked 5.*finished arms are not deleted"):
        experiment(place, tmp_path / "out", steps=5)
    wider = dataclasses.replace(RECIPE, width=64)
    with pytest.raises(ConfigError, match="width: there 32, asked 64"):
        experiment(place, tmp_path / "out", recipe=wider)
    assert {path: path.stat().st_mtime_ns for path in marks} == marks, "a refused run deletes nothing"
    (tmp_path / "out" / "notes.txt").write_text("mine")
    longer = experiment(place, tmp_path / "out", steps=5, overwrite=True)
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    assert all(path.stat().st_mtime_ns != time_ns for path, time_ns in marks.items())
    assert {result["steps"] for result in longer["arms"]} == {5}


def test_other_settings_are_refused_before_text_is_looked_through_and_deleted_after_it(place, tmp_path, monkeypatch):
    arm = tmp_path / "graft-seed0" / "settings.json"
    arm.parent.mkdir()
    for path in (arm, tmp_path / "plan.json"):
        path.write_text('{"settings": {"steps": 3}}')

    def refuse(*given):
        raise CorpusError("overlap")

    monkeypatch.setattr("memgraft.experiments.experiment._measure", refuse)
    with pytest.raises(ConfigError, match="steps: there 3, asked 4"):
        experiment(place, tmp_path)
    with pytest.raises(CorpusError, match="overlap"):
        experiment(place, tmp_path, overwrite=True)
    assert arm.exists(), "what is refused deletes nothing"


@pytest.mark.slow
def test_what_is_finished_is_on_record_before_the_last_arm(place, tmp_path):
    out = tmp_path / "experiment"

    def stop(phase, done, total):
        if phase == "train graft":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        experiment(place, out, progress=stop)
    found = json.loads((out / "results.json").read_text())
    assert [arm["arm"] for arm in found["arms"]] == ["none"]
    assert found["unfinished"] == [{"arm": "graft", "seed": 0}]
    whole = experiment(place, out)
    assert [arm["arm"] for arm in whole["arms"]] == ["none", "graft"]
    assert whole["arms"][0] == found["arms"][0]
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(whole))
    assert not whole["unfinished"]


@pytest.mark.slow
def test_an_arm_that_is_interrupted_after_its_last_step_trains_no_further(place, tmp_path):
    def stop(phase, done, total):
        if phase == "evaluate graft":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        experiment(place, tmp_path / "out", progress=stop)
    assert (tmp_path / "out" / "graft-seed0" / "checkpoints" / "checkpoint-4").is_dir()
    resumed = experiment(place, tmp_path / "out")
    assert resumed["same_order"]
    graft = resumed["arms"][1]
    assert graft["resumed"]
    assert graft["tokens_per_second"] > 0
    (whole,) = experiment(place, tmp_path / "whole", arms=("graft",))["arms"]
    for name in ("order_fingerprint", "train_curve", "held_out_curve", "held_out"):
        assert graft[name] == whole[name], name


@pytest.mark.slow
def test_two_seeds_give_an_interval_over_seeds(place, tmp_path):
    results = experiment(place, tmp_path / "out", arms=("graft", "shuffled"), seeds=(0, 1), steps=2)
    (comparison,) = results["comparisons"]
    assert comparison["over"] == "seeds"
    assert comparison["seeds"] == [0, 1]
    starts = {result["seed"]: result["start_fingerprint"] for result in results["arms"]}
    assert starts[0] != starts[1]
    assert results["same_start"]
    assert results["same_order"]


@pytest.mark.slow
def test_the_saved_model_gives_the_same_loss_again(place, material, tmp_path):
    from memgraft.quickstart.sample import load_recipient

    results = experiment(place, tmp_path / "out")
    model = load_recipient(tmp_path / "out" / "model", material.bank)
    chosen = spread_windows(material.held_out, RECIPE.held_out_windows)
    bf16 = results["settings"]["bf16"]
    again = held_out_loss(model, material.held_out, chosen, material.bank, grafted=True, batch_size=8, bf16=bf16)
    assert again.overall == pytest.approx(results["arms"][1]["held_out"]["overall"], abs=1e-4)


def test_the_saved_recipient_opens_with_a_tokenizer_that_can_pad(place, tmp_path):
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = LlamaConfig(vocab_size=300, bos_token_id=None, eos_token_id=0, pad_token_id=0, **sizes)
    for name in ("plain", "whole"):
        source = tmp_path / f"{name}-tokenizer"
        source.mkdir()
        shutil.copyfile(place / "tokenizer.json", source / "tokenizer.json")
        if name == "whole":
            (source / "tokenizer_config.json").write_text('{"eos_token": "a", "model_max_length": 77}')
        save_model(LlamaForCausalLM(config), tmp_path / name, grafted=False, tokenizer=source)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "plain" / "recipient")
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token) == (0, 0, None)
    ids = Tokenizer.from_file(str(place / "tokenizer.json")).encode("a text of it").ids
    assert tokenizer(["a text of it", ""], padding=True)["input_ids"] == [ids, [0] * len(ids)]
    own = AutoTokenizer.from_pretrained(tmp_path / "whole" / "recipient")
    assert (own.eos_token, own.pad_token, own.model_max_length) == ("a", None, 77)


class Counted:
    """An optimizer that counts its steps."""

    def __init__(self, optimizer):
        self.optimizer, self.steps = optimizer, 0

    def step(self):
        self.steps += 1
        self.optimizer.step()

    def zero_grad(self):
        self.optimizer.zero_grad()


@pytest.mark.slow
def test_minutes_become_the_same_steps_for_every_arm(place, tmp_path):
    results = experiment(place, tmp_path / "out", steps=None, minutes=0.05)
    plan = results["plan"]
    assert plan["steps"] >= 1
    assert {result["steps"] for result in results["arms"]} == {plan["steps"]}
    assert set(plan["seconds_per_step"]) == {"none", "graft"}
    assert json.loads((tmp_path / "out" / "plan.json").read_text()) == plan


def test_of_a_step_that_takes_longer_than_the_budget_no_second_is_measured_nor_another_arm(
    place, tmp_path, monkeypatch
):
    built = []

    def counted(*given):
        built.append(Counted(build_optimizer(*given)))
        return built[-1]

    monkeypatch.setattr("memgraft.experiments.plan.build_optimizer", counted)
    with pytest.raises(ConfigError, match=r"give more minutes \(one step takes [0-9.]+\), or"):
        experiment(place, tmp_path / "other", steps=None, minutes=1e-6)
    assert [optimizer.steps for optimizer in built] == [1]


def test_the_unigram_loss_is_that_of_counts_plus_one(place):
    training, held_out = (memgraft.Corpus.open(place / f"{part}-tokens.bin") for part in ("training", "held-out"))
    counts = {}
    for token in training.tokens().tolist():
        counts[token] = counts.get(token, 0) + 1
    total = training.num_tokens + 320
    losses = [-math.log((counts.get(token, 0) + 1) / total) for token in held_out.tokens().tolist()]
    assert unigram_loss(training, held_out, 320) == pytest.approx(sum(losses) / len(losses))


@pytest.mark.parametrize("steps", [1, 6, 100, 3000])
def test_evaluation_takes_a_tenth_of_the_training(steps):
    recipe = Recipe(batch_size=8, curve_points=10)
    final, curve = recipe.evaluation(steps)
    assert final + 10 * curve <= max(8, 0.2 * steps * 8) + max(10 * 2, 0.1 * steps * 8)
    assert final <= 400
    assert curve <= 24
    assert Recipe(held_out_windows=0, curve_windows=3).evaluation(steps) == (0, 3)


def test_documents_of_the_keys_are_refused_as_held_out(place, tmp_path):
    whole = memgraft.Corpus.open(place / "training-tokens.bin")
    training, held_out = whole.split(held_out=0.25, seed=1)
    keys = memgraft.mine(training, budget=50)
    assert mined_from(keys.metadata, whole) is True
    assert mined_from(keys.metadata, training) is True
    assert mined_from(keys.metadata, held_out) is False
    assert mined_from(keys.metadata, whole.split(held_out=0.25, seed=2)[1]) is True
    assert mined_from(memgraft.mine(whole, budget=50).metadata, held_out) is True
    assert mined_from(keys.metadata, memgraft.Corpus.open(place / "held-out-tokens.bin")) is False
    assert mined_from({}, whole) is None
    with pytest.raises(CorpusError, match="or from documents of it"):
        experiment(place, tmp_path / "out", held_out=whole.split(held_out=0.5, seed=3)[1])


@pytest.mark.parametrize(
    "error",
    [
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"),
        OSError(30, "Read-only file system"),
    ],
)
def test_a_full_disk_is_one_typed_error(error, tmp_path):
    message = r"a checkpoint cannot be written .*run the same command again"
    with pytest.raises(StorageError, match=message), disk_errors(tmp_path):
        raise error


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ConfigError("seeds"), SafetensorError("header")])
def test_other_errors_of_training_pass(error, tmp_path):
    with pytest.raises(type(error)) as caught, disk_errors(tmp_path):
        raise error
    assert caught.value is error


def test_text_that_the_keys_come_from_is_refused_by_the_sample_beside_them(place, tmp_path):
    """The bank was mined from another corpus than the training, of which the text to measure by has documents."""
    training = memgraft.Corpus.open(place / "training-tokens.bin")
    shutil.copytree(place / "bank", tmp_path / "bank")
    write_sample(training, tmp_path / "bank" / "keys.mgk")
    memgraft.Bank.open(tmp_path / "bank").verify()
    (tmp_path / "text").mkdir()
    for number in (0, 1, 40):
        (tmp_path / "text" / f"{number}.txt").write_text(tiny_text(number, sentences=12))
    memgraft.tokenize_folder(tmp_path / "text", place / "tokenizer.json", tmp_path / "mixed", eos=0)
    with pytest.raises(CorpusError, match=r"the held-out corpus: expected documents .* of its tokens in such"):
        run_experiment(
            memgraft.Bank.open(tmp_path / "bank"),
            memgraft.Corpus.open(place / "held-out-tokens.bin"),
            memgraft.Corpus.open(tmp_path / "mixed.bin"),
            tmp_path / "out",
            recipe=RECIPE,
            tokenizer=place / "tokenizer.json",
        )


def test_text_of_another_tokenizer_is_refused(place, tmp_path):
    byte_bpe([tiny_text(9)], 300).save(str(tmp_path / "foreign.json"))
    memgraft.tokenize_folder(place / "held-out", tmp_path / "foreign.json", tmp_path / "foreign", eos=0)
    with pytest.raises(FingerprintError, match="tokenise the text with the recipient's tokenizer"):
        experiment(place, tmp_path / "out", held_out=memgraft.Corpus.open(tmp_path / "foreign.bin"))
    assert not (tmp_path / "out").exists()


def test_bad_requests_are_typed_errors(place, tmp_path):
    with pytest.raises(ConfigError, match="unknown"):
        arms_named(["graft", "magic"])
    with pytest.raises(ConfigError, match="distinct names"):
        arms_named(["graft", "graft"])
    with pytest.raises(ConfigError, match="distinct seeds"):
        experiment(place, tmp_path / "out", seeds=(1, 1))
    with pytest.raises(CorpusError, match="the held-out corpus is the training corpus"):
        experiment(place, tmp_path / "out", held_out=memgraft.Corpus.open(place / "training-tokens.bin"))
    with pytest.raises(CorpusError, match="mined from the held-out corpus"):
        run_experiment(
            memgraft.Bank.open(place / "bank"),
            memgraft.Corpus.open(place / "held-out-tokens.bin"),
            memgraft.Corpus.open(place / "training-tokens.bin"),
            tmp_path / "out",
            tokenizer=place / "tokenizer.json",
        )
    with pytest.raises(ConfigError, match="site 2: expected a block from 0 to 1; give one of these, or more blocks"):
        Recipe(num_blocks=2, site=2)
    with pytest.raises(CorpusError, match="expected at least one window of 100000"):
        TokenWindows(memgraft.Corpus.open(place / "training-tokens.bin"), 100_000)
    assert not list(tmp_path.iterdir())
