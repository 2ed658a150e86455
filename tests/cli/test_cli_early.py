"""Options that no torch is needed for are refused before it is imported, which takes seconds."""

import json
import subprocess
import sys

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

import memgraft

_TELL = """
import json, sys
from typer.testing import CliRunner
from memgraft.cli.app import build_app

for command in json.load(sys.stdin):
    result = CliRunner().invoke(build_app(), command)
    heavy = [name for name in ("torch", "transformers") if name in sys.modules]
    print(json.dumps([result.exit_code, result.stderr, heavy]), flush=True)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Keys, a bank of random rows, a donor's config, a tokenizer: nothing that a model made."""
    folder = tmp_path_factory.mktemp("early")
    words = {word: place for place, word in enumerate(["<eos>", "<unk>", "the", "king", "of"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    other = Tokenizer(models.WordLevel(words | {"king": 4, "of": 3}, unk_token="<unk>"))
    other.pre_tokenizer = tokenizer.pre_tokenizer
    other.save(str(folder / "other.json"))
    (folder / "text").mkdir()
    for number in range(3):
        (folder / "text" / f"{number}.txt").write_text("the king of the king of the " * (number + 3))
    memgraft.tokenize_folder(folder / "text", folder / "tokenizer.json", folder / "tokens", eos=0)
    keys = memgraft.mine(memgraft.Corpus.open(folder / "tokens.bin"), budget=50)
    keys.save(folder / "keys.mgk")
    memgraft.Bank.create(
        folder / "bank", keys=keys, values=np.ones((len(keys), 1, 8), np.float32), taps=(2,), dtype="bf16"
    )
    (folder / "begun.partial").mkdir()
    (folder / "begun.partial" / "state.json").write_text(json.dumps({"dtype": "bf16", "taps": [2], "donor": {}}))
    (folder / "donor").mkdir()
    (folder / "donor" / "config.json").write_text(json.dumps({"num_hidden_layers": 3}))
    (folder / "donor" / "model.safetensors").write_bytes(b"")
    for name, facts in (("recipient/config", {}), ("graft/graft", {"bank": {"fingerprint": "x", "path": "../bank"}})):
        path = folder / "model" / f"{name}.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(facts))
    (folder / "facts.jsonl").write_text('{"prompt": "the king of", "completion": " Zembla"}\n')
    for name in ("old.svg", "old.html"):
        (folder / name).write_text("precious")
    for name, recipe in (("typo", "{widht: 8}"), ("site", "{site: 7}"), ("tap", "{tap: 3}")):
        paths = "bank: bank\ntrain: tokens\nheld_out: tokens\ntokenizer: tokenizer.json\nout: x\n"
        (folder / f"{name}.yaml").write_text(f"{paths}recipe: {recipe}\n")
    return folder


def test_what_is_wrong_with_an_option_is_said_before_torch_is_imported(place):
    harvest = ["harvest", "keys.mgk", "--tokenizer", "tokenizer.json", "--donor", "donor", "--out", "new"]
    probe = ["probe", "keys.mgk", "--tokenizer", "tokenizer.json", "--corpus", "tokens", "--donor", "donor"]
    train = ["train", "bank", "--train", "tokens", "--out", "exp", "--tokenizer", "tokenizer.json"]
    extend = ["extend", "bank", "--corpus", "tokens", "--out", "over", "--donor", "donor"]
    teach = ["teach", "model", "--facts", "facts.jsonl", "--neutral", "tokens", "--out", "over", "--donor", "donor"]
    missing = ["--donor", "./nowhere"]
    cases = {
        (*harvest,): "--taps: expected donor depths",
        (*harvest, "--taps", "x"): "--taps x: expected numbers",
        (*harvest, "--taps", "77"): "donor donor has 3 blocks",
        (*harvest, *missing, "--taps", "2"): "no such file or folder",
        (*harvest, "--donor", "nowhere", "--taps", "2"): "HF_HUB_OFFLINE is set",
        (*harvest, "--taps", "2", "--round-trip", "word"): "round_trip: expected",
        (*harvest, "--taps", "2", "--compute-dtype", "int4"): "compute_dtype: expected auto, float32",
        (*harvest, "--taps", "2", "--memory", "1MiB"): "expected at least 128 MiB",
        (*harvest, "--taps", "2", "--contexts", "0,4"): "contexts: expected occurrences",
        (*harvest, "--taps", "2", "--contexts", "2,4"): "contexts: expected the corpus",
        (*harvest, "--taps", "2", "--value-dtype", "fp7"): "--value-dtype fp7: expected",
        (*harvest, "--taps", "2", "--rank", "3"): "expected both or neither",
        (*harvest, "--taps", "2", "--tokenizer", "other.json"): "not the one that made the keys' tokens",
        (*harvest, "--taps", "1", "--out", "bank"): "taps: expected (1,), found (2,)",
        (*harvest, "--taps", "1", "--out", "begun"): "taps: [2] there, [1] now",
        (*probe, "--taps", "77"): "donor donor has 3 blocks",
        (*probe, "--donor", "nowhere"): "HF_HUB_OFFLINE is set",
        (*probe, *missing): "no such file or folder",
        (*probe, "--normalise", "l3"): "normalisations: expected rms, none",
        (*probe, "--value-dtypes", "fp7"): "fp7: expected",
        (*probe, "--seeds", "0"): "--seeds",
        (*probe, "--compute-dtype", "int4"): "compute_dtype: expected auto, float32",
        (*probe, "--contexts", "0:4"): "contexts: expected occurrences",
        (*probe, "--contexts", "2:x"): "--contexts 2:x: expected two whole numbers K:L such as 1:0,2:12",
        (*probe, "--plot", "old.svg"): "choose another --plot, or --overwrite",
        ("inspect", "model", "--text", "the king", "--html", "old.html"): "choose another --html, or --overwrite",
        (*probe, "--tokenizer", "other.json"): "not the one that made the keys' tokens",
        (*train, "--seeds", "x"): "--seeds",
        (*train, "--arms", "nonne"): "'nonne'",
        (*train, "--width", "30"): "divisible by the heads",
        (*train, "--site", "9"): "site 9: expected a block from 0 to 4",
        (*train, "--tap", "3"): "--tap: expected one of the bank's 2, got 3",
        (*train, "--held-out", "nowhere"): "nowhere",
        ("train", "nowhere", *train[2:]): "nowhere",
        ("compare", "typo.yaml"): "widht: unknown",
        ("compare", "site.yaml"): "site 7: expected a block from 0 to 4",
        ("compare", "tap.yaml"): "taps [3] are not in the bank",
        (*extend, *missing): "no such file or folder",
        (*extend, "--donor", "nobody/nothing"): "HF_HUB_OFFLINE is set",
        (*extend, "--budget", "x"): "budget: expected a number",
        (*extend, "--memory", "x"): "memory",
        ("teach", "bank", *teach[2:]): "expected a graft",
        (*teach, "--target", "2"): "target: expected a probability",
        (*teach, "--facts", "nowhere"): "nowhere",
        (
            "inspect",
            "model",
            "--text",
            "the king",
        ): "bank x is not at ../bank: give where it is now as --bank",
        ("teach", "model", *teach[2:]): "the graft's bank x is not at ../bank",
        ("verify", "bank", *missing): "no such file or folder",
        ("verify", "bank", "--donor", "donor", "--compute-dtype", "int4"): "compute_dtype: expected auto",
        ("verify", "keys.mgk", "--donor", "donor"): "expected a bank",
        ("plan", "tokens", "--tokenizer", "tokenizer.json", *missing): "no such file or folder",
        ("quickstart", "--seeds", "x"): "--seeds",
        ("quickstart", *missing, "--corpus", "text"): "no such file or folder",
    }
    given = json.dumps(list(cases))
    told = subprocess.run(
        [sys.executable, "-c", _TELL], input=given, capture_output=True, text=True, check=True, cwd=place
    ).stdout.splitlines()
    assert len(told) == len(cases)
    for (command, message), line in zip(cases.items(), told, strict=True):
        code, said, heavy = json.loads(line)
        assert code in (1, 2), (command, said)
        assert message in said, (command, said)
        assert heavy == [], command
    assert not any((place / name).exists() for name in ("new", "new.partial", "exp", "over", "x", "quickstart"))
