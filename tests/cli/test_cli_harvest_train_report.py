"""The verbs harvest, train and report on files, as a user calls them."""

import json
import logging
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent.parent))

import memgraft
from memgraft.cli.app import build_app
from memgraft.corpus import CorpusSample, sample_of, write_sample
from memgraft.names import LOG_NAME
from memgraft.report.commands import commands_of
from tiny import byte_bpe, tiny_donor, tiny_text

RECIPIENT = ["--width", "32", "--blocks", "2", "--tap", "2", "--seq-len", "32", "--batch-size", "4", "--eos-id", "0"]


def invoke(*arguments):
    return CliRunner().invoke(build_app(), [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verbs")
    for part, numbers in (("training", range(8)), ("held-out", range(20, 23))):
        (folder / part).mkdir()
        for number in numbers:
            (folder / part / f"{number}.txt").write_text(tiny_text(number, sentences=12))
    byte_bpe([tiny_text(number) for number in range(8)], 320).save(str(folder / "tokenizer.json"))
    for part in ("training", "held-out"):
        memgraft.tokenize_folder(
            folder / part, folder / "tokenizer.json", folder / f"{part}-tokens", eos="<|endoftext|>"
        )
    corpus = memgraft.Corpus.open(folder / "training-tokens.bin")
    memgraft.mine(corpus, budget=300).save(folder / "keys.mgk")
    write_sample(corpus, folder / "keys.mgk")
    tiny_donor(folder / "donor")
    return folder


@pytest.fixture(scope="module")
def bank(place):
    result = invoke(*harvest_command(place), "--out", place / "bank", "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def harvest_command(place):
    keys, tokenizer, donor = place / "keys.mgk", place / "tokenizer.json", place / "donor"
    return ["harvest", keys, "--tokenizer", tokenizer, "--donor", donor, "--taps", "1,2"]


def train_command(place, out):
    training, held_out = place / "training-tokens.bin", place / "held-out-tokens.bin"
    tokenizer = ["--tokenizer", place / "tokenizer.json"]
    return ["train", place / "bank", "--train", training, "--held-out", held_out, *tokenizer, "--out", out, *RECIPIENT]


def test_harvest_writes_a_bank_and_says_what_is_in_it(place, bank):
    opened = memgraft.Bank.open(place / "bank")
    assert bank["fingerprint"] == opened.fingerprint
    num_keys = len(memgraft.KeySet.open(place / "keys.mgk"))
    assert bank["num_rows"] == opened.num_rows == num_keys - sum(bank["dropped"].values()) > 200
    assert bank["taps"] == [1, 2]
    assert sum(group["rows"] for group in bank["rows"].values()) == bank["all_rows"]["rows"] == opened.num_rows
    shown = json.loads(invoke("inspect", place / "bank", "--json").stdout)
    assert shown["all_rows"] == bank["all_rows"]
    assert bank["value_bytes"] == opened.num_rows * 2 * 32 * 2
    assert sample_of(opened.keys).to_bytes() == (place / "keys.mgk.sample").read_bytes()


def test_a_finished_bank_is_told_from_one_that_was_harvested_now_and_its_health_is_a_table(place, bank):
    again = invoke(*harvest_command(place), "--out", place / "bank")
    assert again.exit_code == 0, again.stderr
    assert "bank was finished before; nothing was harvested" in again.stderr
    for shown in (again.stdout, invoke("inspect", place / "bank").stdout):
        table = shown[shown.index("read as") :].splitlines()
        assert table[0].split() == ["read", "as", "rows", "of", "counts", "cosine", "twins", "norm", "rank", "outliers"]
        assert table[-1].split()[:3] == ["all", str(bank["num_rows"]), "100.0%"]
        assert "share_of_counts" not in shown


def test_a_tokenizer_that_did_not_make_the_keys_is_refused_before_a_text_is_tokenised(place, bank, tmp_path):
    byte_bpe(["another text altogether, of other words"], 300).save(str(tmp_path / "tokenizer.json"))
    text = tmp_path / "text"
    text.mkdir()
    (text / "a.txt").write_bytes(b"not UTF-8: \xff")  # tokenising it would be another error
    given = ["--tokenizer", tmp_path / "tokenizer.json"]
    for command in (
        ["coverage", place / "keys.mgk", text],
        ["coverage", place / "bank", text],
        ["annotate", place / "bank", "--corpus", text, "-o", tmp_path / "rows"],
        ["extend", place / "bank", "--corpus", text, "--donor", place / "donor", "-o", tmp_path / "more"],
        ["report", place / "bank", "--coverage", text, "-o", tmp_path / "report"],
        ["train", place / "bank", "--train", text, "-o", tmp_path / "experiment"],
    ):
        refused = invoke(*command, *given)
        assert refused.exit_code == 1
        assert f"--tokenizer {tmp_path / 'tokenizer.json'}: not the one that made the keys of" in refused.stderr


def test_a_bank_reads_text_by_its_own_tokenizer(place, bank):
    counted = invoke("coverage", place / "bank", place / "held-out", "--json")
    assert counted.exit_code == 0, counted.stderr
    given = invoke("coverage", place / "bank", place / "held-out", "--tokenizer", place / "tokenizer.json", "--json")
    assert json.loads(counted.stdout) == json.loads(given.stdout)


def test_a_bank_shows_texts_by_its_own_tokenizer(place, bank):
    shown = invoke("inspect", place / "bank", "--text", tiny_text(1, sentences=1), "--json")
    assert shown.exit_code == 0, shown.stderr
    assert any(token["row"] is not None for token in json.loads(shown.stdout)["tokens"])
    facts = json.loads(invoke("inspect", place / "bank", "--rows", 2, "--dropped", 2, "--json").stdout)
    assert all(key["text"] for key in facts["top_keys"])
    assert facts["dropped_keys"] == []
    refused = invoke("inspect", place / "keys.mgk", "--dropped", 2)
    assert refused.exit_code == 2
    assert "expected a bank for --dropped" in refused.stderr


def test_harvest_in_contexts(place, bank, tmp_path):
    asked = [*harvest_command(place), "--contexts", "2,5", "--out", tmp_path / "bank", "--json"]
    made = invoke(*asked, "--corpus", place / "training-tokens.bin")
    assert made.exit_code == 0, made.stderr
    facts = json.loads(made.stdout)
    assert facts["contexts"] == {"occurrences": 2, "left": 5}
    assert 0 < facts["windows"] <= 2 * facts["num_rows"]
    assert facts["fingerprint"] != bank["fingerprint"]
    assert "are read in" in made.stderr
    refused = invoke(*asked[:-3], "--out", tmp_path / "other", "--corpus", place / "held-out-tokens.bin")
    assert refused.exit_code == 1
    assert "that the keys were mined from" in refused.stderr
    for wrong, message in (("2", "expected two whole numbers K,L"), ("0,5", "expected occurrences of 1")):
        refused = invoke(*harvest_command(place), "--contexts", wrong, "--out", tmp_path / "other")
        assert refused.exit_code == 2
        assert message in refused.stderr


def test_a_dry_run_writes_nothing(place, bank, tmp_path):
    result = invoke(*harvest_command(place), "--out", tmp_path / "bank", "--dry-run", "--json")
    assert result.exit_code == 0, result.stderr
    facts = json.loads(result.stdout)
    assert (facts["num_rows"], facts["value_bytes"]) == (bank["num_rows"], bank["value_bytes"])
    assert facts["keys_per_second"] > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        (["--taps", "1,9"], 1, "tap 9: donor donor has 3 blocks"),
        (["--taps", "deep"], 2, "expected numbers of blocks"),
        (["--dtype", "int3"], 2, "expected one of"),
        (["--compute-dtype", "half"], 2, "expected auto, float32, bfloat16 or float16"),
        (["--tokenizer", "absent.json"], 2, "found no such file"),
        (["--donor", "./absent.gguf"], 1, "no such file or folder"),
    ],
)
def test_what_cannot_be_harvested_is_said_in_one_line(place, tmp_path, changes, code, message):
    result = invoke(*harvest_command(place), "--out", tmp_path / "bank", *changes)
    assert result.exit_code == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_train_then_report(place, bank, tmp_path):
    result = invoke(*train_command(place, tmp_path / "run"), "--steps", 3, "--arms", "graft,shuffled", "--json")
    assert result.exit_code == 0, result.stderr
    results = json.loads(result.stdout)
    assert [entry["arm"] for entry in results["arms"]] == ["graft", "shuffled"]
    assert (tmp_path / "run" / "model" / "graft" / "graft.safetensors").is_file()

    # What is kept knows its bank, and is one thing to inspect and verify.
    explained = invoke("inspect", tmp_path / "run" / "model", "--text", tiny_text(1, sentences=1), "--json")
    assert explained.exit_code == 0, explained.stderr
    assert any(token["gate"] for token in json.loads(explained.stdout)["tokens"])
    again = ("inspect", tmp_path / "run" / "model", "--text", "a <b> & c", "--html", tmp_path / "page.html")
    assert invoke(*again).exit_code == 0
    assert "&lt;b&gt;" in (tmp_path / "page.html").read_text()
    refused = invoke(*again)
    assert (refused.exit_code, "is there already" in refused.stderr) == (2, True)
    model = invoke("verify", tmp_path / "run" / "model", "--json")
    assert [facts["kind"] for facts in json.loads(model.stdout)["verified"]] == ["graft"]
    verified = invoke("verify", tmp_path / "run", tmp_path / "run" / "model" / "graft", "--json")
    assert verified.exit_code == 0, verified.stderr
    assert [facts["kind"] for facts in json.loads(verified.stdout)["verified"]] == ["experiment", "graft"]
    shown = json.loads(invoke("inspect", tmp_path / "run", "--json").stdout)
    assert shown["graft seed 0"] == results["arms"][0]["held_out"]["overall"]
    assert json.loads(invoke("inspect", tmp_path / "run" / "model" / "graft", "--json").stdout)["config"]["sites"] == [
        1
    ]
    text = invoke(*train_command(place, tmp_path / "run"), "--steps", 3, "--arms", "graft,shuffled")
    assert "graft minus shuffled" in text.stdout
    assert "No verdict: this experiment has 1 seed in all arms; a verdict needs 3 or more." in text.stdout

    command = ["report", place / "bank", "--experiment", tmp_path / "run", "--coverage", place / "held-out-tokens.bin"]
    result = invoke(*command, "--out", tmp_path / "report")
    assert result.exit_code == 0, result.stderr
    assert "Graft minus shuffled" in (tmp_path / "report" / "report.html").read_text()
    for verb in ("inspect", "verify"):
        assert "report: holds a report, which is for reading" in invoke(verb, tmp_path / "report").stderr
    facts = json.loads((tmp_path / "report" / "report.json").read_text())
    (coverage,) = facts["coverage"].values()
    assert coverage["mined_from_it"] is False
    assert results["command"].split()[0] == "memgraft"
    assert facts["material"]["commands"].count("memgraft ") >= 2
    assert (
        f"- rows: {memgraft.Bank.open(place / 'bank').num_rows:,}\n" in (tmp_path / "report" / "report.md").read_text()
    )

    results["settings"]["bank"] = "0" * 64
    (tmp_path / "run" / "results.json").write_text(json.dumps(results))
    result = invoke(*command, "--out", tmp_path / "other")
    assert result.exit_code == 1
    assert "the experiment used bank 0000" in result.stderr
    (tmp_path / "run" / "results.json").unlink()
    result = invoke(*command, "--out", tmp_path / "other")
    assert result.exit_code == 1
    assert "results.json: not found: expected what 'memgraft train' leaves" in result.stderr
    assert "coverage" not in result.stderr
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mining", "harvesting"),
    [
        (["--budget", 90, "--policy", "gain", "--orders", "2-4", "--held-out", "0.3", "--seed", 3], ["--taps", "1,2"]),
        (["--budget", "2=40,3=60"], ["--taps", 2, "--prefix", "none", "--contexts", "2,4"]),
        (["--budget", "all", "--min-count", 4, "--min-documents", 2], ["--taps", 2, "--prefix", "bos"]),
        (["--budget", 40], ["--taps", 2, "--prefix", "the king"]),
    ],
)
def test_the_report_names_commands_that_make_the_same_bank(place, tmp_path, mining, harvesting):
    files = {
        "CORPUS": place / "training-tokens.bin",
        "TOKENIZER": place / "tokenizer.json",
        "donor": place / "donor",
        "keys.mgk": tmp_path / "again.mgk",
        "BANK": tmp_path / "again",
    }
    orders = [] if "--orders" in mining else ["--orders", "2,3"]
    result = invoke("mine", files["CORPUS"], "-o", tmp_path / "keys.mgk", *orders, *mining)
    assert result.exit_code == 0, result.stderr
    around = ["--corpus", files["CORPUS"]] if "--contexts" in harvesting else []
    command = ["--tokenizer", files["TOKENIZER"], "--donor", files["donor"], "-o", tmp_path / "bank"]
    result = invoke("harvest", tmp_path / "keys.mgk", *command, *harvesting, *around)
    assert result.exit_code == 0, result.stderr
    commands = commands_of(memgraft.Bank.open(tmp_path / "bank"))
    ids = memgraft.Bank.open(tmp_path / "bank").manifest.donor["prefix"]
    files[f"TEXT OF DONOR IDS {' '.join(map(str, ids))}"] = "the king"
    assert [command.split()[1] for command in commands] == ["mine", "harvest"]
    for command in commands:
        words = [files.get(word, word) for word in shlex.split(command)[1:]]
        result = invoke(*words)
        assert result.exit_code == 0, result.stderr
    made, again = memgraft.Bank.open(tmp_path / "bank"), memgraft.Bank.open(tmp_path / "again")
    assert made.keys.fingerprint == again.keys.fingerprint
    assert made.fingerprint == again.fingerprint


def test_coverage_of_folders_of_text_goes_into_the_report(place, bank, tmp_path):
    for name, part in (("one", "training"), ("two", "held-out")):
        shutil.copytree(place / part, tmp_path / "text" / name)
    for name in ("empty", "nothing", "tables"):
        (tmp_path / "text" / name).mkdir()
    (tmp_path / "text" / "beside.md").write_text("the king of no folder")
    (tmp_path / "text" / "nothing" / "said.txt").write_text("")
    (tmp_path / "text" / "tables" / "x.parquet").write_bytes(b"PAR1")
    command = [
        "coverage",
        place / "bank",
        tmp_path / "text",
        "--tokenizer",
        place / "tokenizer.json",
        "--eos-id",
        0,
        "--by-folder",
        "--json",
    ]
    result = invoke(*command)
    assert result.exit_code == 0, result.stderr
    assert "left out, since nothing in them is read: the folders empty, nothing, tables" in result.stderr
    assert result.stderr.count("left out, since their names are not those of text: tables/x.parquet") == 1
    assert result.stderr.count("tokenize:") == 1  # the text once, not each folder once more
    refused = invoke("coverage", place / "keys.mgk", tmp_path / "text")
    assert refused.exit_code == 1
    assert "give --tokenizer" in refused.stderr
    assert "left out" not in refused.stderr
    facts = json.loads(result.stdout)
    assert len(facts["domains"]) == 2
    assert sum(found["positions"] for found in facts["domains"].values()) < facts["positions"]
    for name, part in (("one", "training"), ("two", "held-out")):
        alone = json.loads(invoke("coverage", place / "bank", place / f"{part}-tokens.bin", "--json").stdout)
        found = facts["domains"][str(tmp_path / "text" / name)]
        assert found == {name: alone[name] for name in found}
    (tmp_path / "domains.json").write_text(result.stdout)
    shown = invoke(*command[:-1]).stdout.splitlines()
    for path, found in facts["domains"].items():
        (line,) = (line for line in shown if line.startswith(path))  # a row each
        assert f"{found['positions']}  " in line
        assert f"{found['coverage']:.2%}" in line
    command = ["report", place / "bank", "--coverage", tmp_path / "domains.json", "--out"]
    result = invoke(*command, tmp_path / "report")
    assert result.exit_code == 0, result.stderr
    assert json.loads((tmp_path / "report" / "report.json").read_text())["coverage"] == {"domains": facts}
    assert f"domains: {tmp_path / 'text' / 'two'}" in (tmp_path / "report" / "report.html").read_text()
    for damaged in ("{", "[]", '{"positions": 3}', json.dumps({**facts, "domains": {"x": {"positions": 1}}})):
        (tmp_path / "domains.json").write_text(damaged)
        result = invoke(*command, tmp_path / "other")
        assert result.exit_code == 1
        assert "expected what 'memgraft coverage --json' writes" in result.stderr


def test_train_and_report_take_files_without_boundaries(place, bank, tmp_path):
    for part in ("training", "held-out"):
        memgraft.Corpus.open(place / f"{part}-tokens.bin").tokens().astype("<u2").tofile(tmp_path / f"{part}.bin")
    command = train_command(place, tmp_path / "run")
    command[command.index("--tokenizer") + 1] = place  # the folder of tokenizer.json
    command[command.index("--train") + 1] = tmp_path / "training.bin"
    command[command.index("--held-out") + 1] = tmp_path / "held-out.bin"
    result = invoke(*command, "--steps", 2, "--arms", "graft")
    assert result.exit_code == 0, result.stderr
    command = ["report", place / "bank", "--coverage", tmp_path / "held-out.bin", "--out", tmp_path / "report"]
    result = invoke(*command)
    assert result.exit_code == 1
    assert "give --eos-id (GPT-2: 50256), or --file-is-document" in result.stderr
    assert invoke(*command, "--eos-id", "0").exit_code == 0


def test_outputs_are_checked_before_the_work(place, bank, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for command in (
        [*harvest_command(place), "--out"],
        [*train_command(place, tmp_path / "run"), "--out"],
        ["report", place / "bank", "--out"],
        ["annotate", place / "bank", "--corpus", place / "held-out-tokens.bin", "--out"],
    ):
        result = invoke(*command, tmp_path / "file" / "deeper")
        assert result.exit_code == 1
        assert "expected a folder or a new name, found the file" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_train_refuses_its_own_training_text(place, bank, tmp_path):
    command = train_command(place, tmp_path / "run")
    command[command.index("--held-out") + 1] = place / "training-tokens.bin"
    result = invoke(*command, "--steps", 2)
    assert result.exit_code == 1
    assert "the held-out corpus is the training corpus" in result.stderr
    (tmp_path / "some").mkdir()
    for number in (0, 20):
        (tmp_path / "some" / f"{number}.txt").write_text(tiny_text(number, sentences=12))
    memgraft.tokenize_folder(tmp_path / "some", place / "tokenizer.json", tmp_path / "c", eos="<|endoftext|>")
    command[command.index("--held-out") + 1] = tmp_path / "c.bin"
    result = invoke(*command, "--steps", 2)
    assert result.exit_code == 1
    assert "the held-out corpus: expected documents that are not in the training corpus, found 1 of 2" in result.stderr


@pytest.mark.parametrize(
    "option",
    [["--arms", "graft,magic"], ["--arms", "graft", "--tap", "5", "--steps", "2"], ["--seeds", "one"], ["--site", "7"]],
)
def test_train_usage_errors_exit_with_two(place, bank, tmp_path, option):
    result = invoke(*train_command(place, tmp_path / "run"), *option)
    assert result.exit_code == 2, result.stderr


def test_extend_writes_an_overlay_of_what_the_bank_lacks(place, bank, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "memgraft.harvesting.run.warn_of_health", lambda _: logging.getLogger(LOG_NAME).warning("poor rows")
    )
    text, overlay = place / "held-out-tokens.bin", tmp_path / "overlay"
    command = ["extend", place / "bank", "--corpus", text, "--donor", place / "donor", "--budget", 60, "--out", overlay]
    result = invoke(*command, "--json")
    assert result.exit_code == 0, result.stderr
    assert "scan: " in result.stderr
    assert " keys" not in next(line for line in result.stderr.splitlines() if line.startswith("scan: "))
    assert "warning: poor rows" in result.stderr
    said = json.loads(result.stdout)
    base, made = memgraft.Bank.open(place / "bank"), memgraft.Bank.open(overlay)
    assert made.num_rows == said["num_rows"] > 0
    assert not set(made.keys) & set(base.keys)
    everything = memgraft.mine(memgraft.Corpus.open(text), orders=base.index.orders, budget=None)
    known = [key for key in everything if base.index.find(key) is not None]
    assert said["known_by_order"] == {str(n): sum(len(key) == n for key in known) for n in base.index.orders}
    # Of each order the most frequent that the bank lacks.
    lacking = [key for key in everything if base.index.find(key) is None]
    for order in base.index.orders:
        want = [key for key in lacking if len(key) == order]
        assert [key for key in made.keys if len(key) == order] == want[: 60 // len(base.index.orders)]
        assert said["over_budget_by_order"][str(order)] == max(0, len(want) - 60 // len(base.index.orders))
    assert made.manifest.donor["prefix"] == base.manifest.donor["prefix"]
    assert sample_of(made.keys).to_bytes() == CorpusSample.of(memgraft.Corpus.open(text)).to_bytes()
    stack = memgraft.Bank.open(f"{place / 'bank'},{overlay}")
    assert said["stack_fingerprint"] == stack.fingerprint
    tokens = memgraft.Corpus.open(text).tokens(0, 200)
    assert (stack.lookup(tokens)[1] >= base.lookup(tokens)[1]).all()
    merged = invoke("bank", "merge", place / "bank", overlay, "--out", tmp_path / "both", "--json")
    assert merged.exit_code == 0, merged.stderr
    assert json.loads(merged.stdout)["sources"] == ["bank", "overlay"]
    for where in (tmp_path / "both", f"{place / 'bank'},{overlay}"):
        shown = invoke("inspect", where, "--rows", 3, "--json")
        assert shown.exit_code == 0, shown.stderr
        assert all(key["donor"] == base.manifest.donor["name"] for key in json.loads(shown.stdout)["top_keys"])
    stacked = f"{place / 'bank'},{overlay}"
    assert "overlay" in invoke("inspect", stacked, "--rows", made.num_rows + base.num_rows).stdout
    assert invoke("bank", "truncate", tmp_path / "both", "--rows", 9, "--out", tmp_path / "few").exit_code == 0
    shown = invoke("inspect", f"{tmp_path / 'few'},{overlay}", "--rows", 9, "--json")
    origins = [memgraft.Bank.open(tmp_path / "few").origin_of(row)["bank"] for row in range(9)]
    assert [key["bank"] for key in json.loads(shown.stdout)["top_keys"]] == [f"few ({name})" for name in origins]
    seen = invoke("inspect", stacked, "--text", tiny_text(20, sentences=12), "--json")
    assert seen.exit_code == 0, seen.stderr
    found = [match["bank"] for match in json.loads(seen.stdout)["tokens"] if match["row"] is not None]
    assert set(found) == {"bank", "overlay"}
    assert invoke("inspect", stacked, "--text", tiny_text(20, sentences=12)).exit_code == 0
    assert invoke("verify", f"{place / 'bank'},{overlay}").exit_code == 0
    with memgraft.CorpusWriter(tmp_path / "strange", vocab_size=base.vocab_size) as writer:
        writer.add([7 * step * step % base.vocab_size for step in range(1, 400)])
        strange = writer.finish()
    covered = invoke("coverage", stacked, strange)
    assert covered.exit_code == 0, covered.stderr
    assert "more than 30%; how many keys would leave no more is told of one bank alone" in covered.stderr
    alone = invoke("coverage", place / "bank", strange)
    assert "more than 30%; no budget up to 16 times these keys is known to leave 30% or less" in alone.stderr
    refused = invoke("coverage", place / "bank", overlay, strange)
    assert refused.exit_code == 1
    assert f"{overlay}: expected token files or text, found a bank; several banks" in refused.stderr
    assert invoke("bank", "truncate", tmp_path / "both", "--rows", 5, "--out", tmp_path / "five").exit_code == 0
    left = invoke("bank", "subtract", tmp_path / "both", overlay, "--out", tmp_path / "left", "--json")
    assert json.loads(left.stdout)["num_rows"] == base.num_rows
    again = invoke(*[*command[:-1], tmp_path / "none"], "--min-count", 1000)
    assert again.exit_code == 1
    assert "the bank has every n-gram" in again.stderr


def test_key_sets_combine_on_the_command_line(place, tmp_path):
    keys, kept = place / "keys.mgk", tmp_path / "kept.mgk"
    everything = memgraft.KeySet.open(keys)
    everything.select(range(100)).save(kept)
    for verb, size in {"union": len(everything), "intersect": 100, "subtract": len(everything) - 100}.items():
        result = invoke("keys", verb, keys, kept, "--out", tmp_path / f"{verb}.mgk", "--json")
        assert result.exit_code == 0, result.stderr
        assert json.loads(result.stdout)["num_keys"] == len(memgraft.KeySet.open(tmp_path / f"{verb}.mgk")) == size
