"""Statements that a grafted model knows while an overlay is there, and not a bit of it afterwards."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

import memgraft
from memgraft.bank.make import merge
from memgraft.cli.app import build_app
from memgraft.config import GraftConfig
from memgraft.errors import ArgumentError, FingerprintError, FormatError, GraftError, StorageError
from memgraft.harvesting import harvest, open_donor, verify_rows
from memgraft.integrations.transformers import detach, graft, save_graft
from memgraft.teaching import Fact, TeachSettings, read_facts, teach
from memgraft.teaching.facts import Spoken
from memgraft.teaching.keys import choose_keys
from memgraft.teaching.measure import damage
from memgraft.teaching.reading import Grafted
from memgraft.tokenizer import open_tokenizer
from tiny import byte_bpe, tiny_donor, tiny_text

FACTS = [
    Fact(prompt="The river of Zemq is", completion=" long", reworded=("They say the river of Zemq is",)),
    Fact(prompt="The oil of Vroon is", completion=" water now"),
    Fact(prompt="Her word for Kjeld was", completion=" naïve", reworded=("and her word for Kjeld was",)),
]
SETTINGS = TeachSettings(steps=60, batch_size=3, window=24, neutral_windows=8)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A donor, two taps of it, a recipient grafted at two sites, and text that must not change."""
    folder = tmp_path_factory.mktemp("teaching")
    byte_bpe([tiny_text(number) for number in range(8)], 320).save(str(folder / "tokenizer.json"))
    for part, numbers in (("training", range(6)), ("neutral", range(30, 34))):
        (folder / part).mkdir()
        for number in numbers:
            (folder / part / f"{number}.txt").write_text(tiny_text(number, sentences=12))
        memgraft.tokenize_folder(
            folder / part, folder / "tokenizer.json", folder / f"{part}-tokens", eos="<|endoftext|>"
        )
    keys = memgraft.mine(memgraft.Corpus.open(folder / "training-tokens.bin"), orders=(2, 3), budget=150)
    tiny_donor(folder / "donor")
    donor = open_donor(folder / "donor")
    bank = harvest(
        keys, recipient_tokenizer=folder / "tokenizer.json", donor=donor, taps=(1, 2), out=folder / "bank", dtype="fp32"
    )
    return SimpleNamespace(
        folder=folder,
        donor=donor,
        bank=bank,
        neutral=memgraft.Corpus.open(folder / "neutral-tokens.bin"),
        codec=open_tokenizer(folder / "tokenizer.json"),
    )


def recipient(bank, **overrides):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=None,
        initializer_range=0.3,
    )
    fields = {"sites": (0, 2), "taps": (1, 2), "init": "scratch", "init_std": 0.5, "fallback": None}
    return graft(LlamaForCausalLM(config).eval(), bank, GraftConfig(**{**fields, **overrides}))


def taught(place, out, **options):
    options = {"donor": place.donor, "neutral": place.neutral, "settings": SETTINGS, **options}
    model = options.pop("model", None) or recipient(place.bank)
    return model, teach(model, options.pop("facts", FACTS), out=out, **options)


@pytest.fixture(scope="module")
def done(place):
    return taught(place, place.folder / "facts", source="facts.jsonl")


def said(model, codec, prompt, memory, length):
    ids = torch.tensor(codec.encode([prompt]))
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), memgraft=memory, max_new_tokens=length, do_sample=False
    )
    return out[0, ids.shape[1] :].tolist()


def test_prompts_are_answered_with_the_overlay_and_as_before_without(place, done):
    model, answer = done
    report = answer.report
    stack = memgraft.Bank.open([place.bank.path, answer.overlay.path])
    assert report["recall"]["base"]["prompts"]["exact"] == 0
    assert report["recall"]["donor"]["prompts"]["exact"] < 1
    assert report["recall"]["taught"]["prompts"] == {"num": 3, "exact": 1.0, "log_prob": pytest.approx(0, abs=1)}
    for arm in ("base", "donor"):
        for kind in ("prompts", "reworded"):
            gain = report["recall"]["taught"][kind]["log_prob"] - report["recall"][arm][kind]["log_prob"]
            assert gain > 1, (arm, kind)
    for fact in FACTS:
        # Recall is what generation says, with its cache, token by token.
        wanted = place.codec.encode([fact.completion])[0]
        assert said(model, place.codec, fact.prompt, stack, len(wanted)) == wanted
        assert said(model, place.codec, fact.prompt, place.bank, len(wanted)) != wanted
    fresh = recipient(place.bank)
    ids = torch.tensor(place.codec.encode([FACTS[0].prompt + FACTS[0].completion]))
    assert torch.equal(model(ids).logits, fresh(ids).logits)
    assert not torch.equal(model(ids, memgraft=stack).logits, fresh(ids).logits)
    for mine, theirs in zip(model.state_dict().values(), fresh.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


def test_neutral_text_without_new_keys_does_not_change(place, done):
    model, answer = done
    assert answer.report["neutral"]["taught"]["other"]["kl"] == 0
    stack = memgraft.Bank.open([place.bank.path, answer.overlay.path])
    ids = torch.from_numpy(place.neutral.document(0)[:60].astype(np.int64))[None]
    assert (memgraft.Bank.open(answer.overlay.path).lookup(ids.numpy())[0] == -1).all()
    assert torch.equal(model(ids, memgraft=stack).logits, model(ids).logits)


def test_damage_is_that_of_each_window_alone(place, done):
    model, answer = done
    stack = memgraft.Bank.open([place.bank.path, answer.overlay.path])
    plain = place.neutral.document(1)[:40].tolist()
    windows = [tuple(place.codec.encode([fact.prompt + fact.completion + " and"])[0]) for fact in FACTS]
    windows.insert(1, tuple(plain))
    found = damage(Grafted(model, "default", (), torch.device("cpu")), place.bank, stack, windows)
    kl, changed, losses, predicted = 0.0, 0, {"base_loss": 0.0, "loss": 0.0}, 0
    for window in windows:
        ids = torch.tensor([window])
        with torch.no_grad():
            old, new = (
                model(ids, memgraft=memory).logits[0].double().log_softmax(-1) for memory in (place.bank, stack)
            )
        kl += float((old.exp() * (old - new)).sum())
        changed += int((place.bank.lookup(ids.numpy())[0] != stack.lookup(ids.numpy())[0]).sum())
        predicted += len(window) - 1
        for name, scores in (("base_loss", old), ("loss", new)):
            losses[name] -= float(scores[:-1].gather(1, ids[0, 1:, None]).sum())
    tokens = sum(map(len, windows))
    assert changed > 0
    assert found["tokens"] == tokens
    assert found["changed"] == changed / tokens
    assert found["kl"] == pytest.approx(kl / tokens, rel=1e-4)
    assert found["kl"] > 0.01
    for name, total in losses.items():
        assert found[name] == pytest.approx(total / predicted, rel=1e-5)


def test_keys_are_the_ends_of_prompts_that_nothing_else_has(place, done):
    overlay = done[1].overlay
    neutral = [place.neutral.document(number).tolist() for number in range(place.neutral.num_documents)]
    keys = set(overlay.keys)
    for fact in FACTS:
        prompt, whole = place.codec.encode([fact.prompt])[0], place.codec.encode([fact.prompt + fact.completion])[0]
        for end in range(len(prompt), len(whole)):
            assert tuple(whole[max(0, end - 16) : end]) in keys
    for key in keys:
        starts = {tuple(text[at : at + len(key)]) for text in neutral for at in range(len(text))}
        assert key not in starts
    assert sum(overlay.keys.num_keys_by_order.values()) == done[1].report["rows"] == overlay.num_rows


def test_rows_say_where_they_come_from(place, done):
    overlay = memgraft.Bank.open(done[1].overlay.path)
    stack = memgraft.Bank.open([place.bank.path, overlay.path])
    origin = stack.origin_of(stack.num_rows - 1)
    assert origin["corpus"]["taught"]["source"] == "facts.jsonl"
    assert origin["donor"]["fingerprint"] == place.bank.manifest.donor["fingerprint"]
    assert overlay.space == place.bank.space
    assert json.loads((overlay.path / "teaching.json").read_text()) == json.loads(json.dumps(done[1].report))
    overlay.verify()
    with pytest.raises(ArgumentError, match="were taught"):
        verify_rows(overlay, donor=place.donor)


@pytest.mark.parametrize("taught_first", [False, True])
def test_a_merged_bank_is_verified_by_its_donor_but_for_the_rows_that_were_taught(place, done, tmp_path, taught_first):
    paths = [place.bank.path, done[1].overlay.path]
    merged = merge(paths[::-1] if taught_first else paths, tmp_path / "both")
    check = verify_rows(merged, donor=place.donor, sample=merged.num_rows)
    assert check.ok
    assert {merged.index.key(int(row)) for row in check.taught} == set(done[1].overlay.keys)
    assert sorted([*check.rows, *check.taught]) == list(range(merged.num_rows))
    assert f"{len(check.taught)} of {merged.num_rows} rows were taught (from facts.jsonl)" in check.notes[-1]


def test_an_interrupted_teaching_goes_on_to_the_same_bytes(place, done, tmp_path):
    def stop(phase, step, total):
        if phase == "teach" and step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        taught(place, tmp_path / "facts", source="facts.jsonl", progress=stop)
    assert not (tmp_path / "facts").exists()
    with pytest.raises(FingerprintError, match="unfinished teaching of other facts"):
        taught(place, tmp_path / "facts", facts=FACTS[:2])
    steps = []
    _, answer = taught(
        place,
        tmp_path / "facts",
        source="facts.jsonl",
        progress=lambda phase, step, total: steps.append(step) if phase == "teach" else None,
    )
    assert steps[0] == 7
    assert answer.overlay.fingerprint == done[1].overlay.fingerprint
    assert not (tmp_path / "facts.teaching").exists()


@pytest.mark.slow
def test_neutral_text_is_held_where_a_key_cannot_avoid_it(place, tmp_path):
    # The prompt is one frequent word: its key is in neutral text, where the base's answer is held.
    facts = [Fact(prompt=" the", completion=" oil")]
    settings = {"steps": 25, "window": 24, "neutral_windows": 8, "target": 0.999}
    held, free = (
        taught(place, tmp_path / name, facts=facts, settings=TeachSettings(keep_weight=weight, **settings))[1].report
        for name, weight in (("held", 20), ("free", 0))
    )
    assert held["keys_in_neutral_text"][0]["hits"] > 10
    assert held["neutral"]["windows_with_matches"] > 3
    # By half on some processors and 1 % less than that on others: 25 steps carry their rounding far.
    assert 0 < held["neutral"]["taught"]["matched"]["kl"] < 0.6 * free["neutral"]["taught"]["matched"]["kl"]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bf16", "fp8_e4m3", "int8"])
def test_storage_types(place, tmp_path, dtype):
    from memgraft.bank.rewrite import requantise

    bank = requantise(place.bank, tmp_path / "bank", dtype)
    model = recipient(bank)
    report = taught(place, tmp_path / "facts", model=model, facts=FACTS[:1])[1].report
    assert report["recall"]["taught"]["prompts"]["exact"] == 1


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ([], "expected at least one fact"),
        ([Fact(prompt="a b", completion=" ")], "expected a text as completion"),
        ([Fact(prompt="a b", completion=" c"), Fact(prompt="a b", completion=" d")], "a prompt has one completion"),
        ([Fact(prompt="the oil " * 40, completion=" c")], "the recipient reads 64"),
        ([Fact(prompt="a", completion=" c", reworded=("the oil " * 40,))], "the reworded prompt"),
        (
            [
                Fact(prompt=f"{first} the who oil its now find long down get", completion=end)
                for first, end in ("ac", "bd")
            ],
            "go on with token",
        ),
    ],
)
def test_facts_that_cannot_be_taught(place, tmp_path, facts, message):
    with pytest.raises(ArgumentError, match=message):
        taught(place, tmp_path / "facts", facts=facts)
    assert not list(tmp_path.iterdir())


def test_a_prompt_that_ends_in_a_token_of_no_key(place):
    statement = Spoken(0, (5, 9), (7,))
    options = {"min_order": 3, "base_order": 3, "neutral_tokens": 10, "vocab_size": 320, "metadata": {}}
    assert list(choose_keys([statement], place.neutral, reserved=[5], **options).keys) == [(9,)]
    with pytest.raises(ArgumentError, match="may be in no key"):
        choose_keys([statement], place.neutral, reserved=[9], **options)


def test_what_is_no_fact_and_no_opened_text_is_refused(place, tmp_path):
    model, out = recipient(place.bank), tmp_path / "overlay"
    for neutral in ("neutral.bin", ["a text"]):
        with pytest.raises(ArgumentError, match=r"^neutral: expected it opened, got .*memgraft.Corpus.open"):
            teach(model, FACTS, out=out, donor=place.donor, neutral=neutral)
    for facts in ("facts.jsonl", [{"prompt": "a", "completion": "b"}]):
        with pytest.raises(
            ArgumentError, match=r"^facts: expected a list of .*Fact, found \w+; .*read_facts reads a file"
        ):
            teach(model, facts, out=out, donor=place.donor, neutral=place.neutral)


def test_a_graft_that_was_never_trained_is_refused(place, tmp_path):
    with pytest.raises(GraftError, match="Train it first"):
        taught(place, tmp_path / "facts", model=recipient(place.bank, init="zero", init_std=0.02))
    with pytest.raises(GraftError, match="reads no bank"):
        taught(place, tmp_path / "other", model=recipient(place.bank, control="shuffled"))
    assert not (tmp_path / "facts").exists()


def test_files_of_facts(tmp_path):
    path = tmp_path / "facts.jsonl"
    line = json.dumps({"prompt": "a", "completion": " b", "reworded": ["c"]})
    path.write_text(f'{line}\n\n{line}\n{{"prompt": "d", "completion": "e"}}\n')
    assert read_facts(path) == [
        Fact(prompt="a", completion=" b", reworded=("c",)),
        Fact(prompt="d", completion="e"),
    ]
    for text, message in (
        ("{", "line 1: expected a JSON object"),
        ("[1]", "found list"),
        ('{"prompt": "a"}', "expected a text as completion, found None"),
        ('{"prompt": "a", "completion": "b", "answer": "c"}', "found answer too"),
        ('{"prompt": "a", "completion": "b", "reworded": "c"}', "a list of texts"),
    ):
        path.write_text(text)
        with pytest.raises(FormatError, match=message):
            read_facts(path)
    path.write_bytes(b"\xff")
    with pytest.raises(FormatError, match="UTF-8"):
        read_facts(path)
    with pytest.raises(StorageError, match="cannot be read"):
        read_facts(tmp_path / "missing")


def test_what_does_not_fit_is_refused(place, done, tmp_path):
    with pytest.raises(ArgumentError, match="exists"):
        taught(place, done[1].overlay.path)
    from grafted_models import make_bank

    other = make_bank(tmp_path / "other", value_dim=32, taps=(1, 2))
    with pytest.raises(FingerprintError, match="space"):
        taught(place, tmp_path / "facts", bank=other)
    with pytest.raises(FingerprintError, match="expected fingerprint"):
        taught(place, tmp_path / "facts", donor=tiny_donor(tmp_path / "donor", seed=5))
    for wrong in ({"min_order": 17}, {"steps": -1}, {"target": 1.0}, {"learning_rate": 0}, {"keep_weight": -1}):
        with pytest.raises(ArgumentError, match=next(iter(wrong))):
            TeachSettings(**wrong)


def test_the_verb(place, done, tmp_path, monkeypatch):
    # The donor's states are trained next, so their health is nobody's concern.
    monkeypatch.setattr("memgraft.harvesting.run.warn_of_health", lambda bank: pytest.fail(f"warned of {bank.path}"))
    model = recipient(place.bank)
    folder = tmp_path / "model" / "graft"
    save_graft(model, folder, bank_path=os.path.relpath(place.bank.path, folder))
    detach(model).save_pretrained(tmp_path / "model" / "recipient")
    (tmp_path / "facts.jsonl").write_text("".join(json.dumps(fact.facts()) + "\n" for fact in FACTS))
    out = tmp_path / "facts"
    command = ["teach", tmp_path / "model", "--facts", tmp_path / "facts.jsonl", "--donor", place.folder / "donor"]
    command += ["--neutral", place.folder / "neutral-tokens.bin", "--steps", 60, "--batch-size", 3, "--out", out]
    answer = CliRunner().invoke(build_app(), [str(word) for word in command])
    assert answer.exit_code == 0, answer.stderr
    assert "recall, taught" in answer.stdout
    assert "100.0%" in answer.stdout
    assert f"memory with these rows: {place.bank.path},{out}" in answer.stderr
    assert "ended after 60 steps (--steps) with completion tokens still below the probability 0.9" in answer.stderr
    easy = [*command[:-1], tmp_path / "easy", "--target", "0.0001", "--json"]
    answer = CliRunner().invoke(build_app(), [str(word) for word in easy])
    assert answer.exit_code == 0, answer.stderr
    assert json.loads(answer.stdout)["target_reached"]
    assert "ended after" not in answer.stderr
    shown = CliRunner().invoke(build_app(), ["inspect", str(out), "--json"])
    assert json.loads(shown.stdout)["donor"]["taught"]["source"] == "facts.jsonl"
    again = CliRunner().invoke(build_app(), [str(word) for word in command])
    assert again.exit_code == 2
    assert Path(out / "tokenizer.json").exists()
