import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from typer.testing import CliRunner

import memgraft
from memgraft.cli.app import build_app
from memgraft.corpus import CorpusWriter

pytest.importorskip("tokenizers")


def memgraft_cli(*args):
    return CliRunner().invoke(build_app(), [str(arg) for arg in args], catch_exceptions=False)


def ok(*args):
    result = memgraft_cli(*args)
    assert result.exit_code == 0, result.stderr
    return result


def ok_json(*args):
    return json.loads(ok(*args, "--json").stdout)


def make_tokenizer(path, words):
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocab = {word: token for token, word in enumerate(["<eos>", "[UNK]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<eos>"])
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Text, tokenizer, corpus, keys and index, all made by the verbs."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "text").mkdir()
    for number in range(20):
        (folder / "text" / f"{number:02}.txt").write_text("the cat sat on the mat and the cat ran", encoding="utf-8")
    (folder / "text" / "more.jsonl").write_text('{"text": "the dog sat"}\n\n{"text": "a dog ran"}\n', encoding="utf-8")
    make_tokenizer(folder / "tokenizer.json", ["the", "cat", "sat", "on", "mat", "and", "ran", "dog"])
    tokenize = ("tokenize", folder / "text", "--tokenizer", folder / "tokenizer.json", "--eos", "<eos>")
    ok(*tokenize, "-o", folder / "corpus")
    ok("mine", folder / "corpus", "-o", folder / "keys.mgk", "--budget", "30", "--held-out", "0.25", "--seed", "7")
    ok("build", folder / "keys.mgk", "-o", folder / "index.mgi")
    return folder


def test_text_to_index(made):
    corpus = memgraft.Corpus.open(made / "corpus")
    assert corpus.num_documents == 22
    assert corpus.document(20).tolist() == [2, 9, 4, 0]
    assert corpus.document(21).tolist() == [1, 9, 8, 0]
    assert (corpus.vocab_size, corpus.eos_id, corpus.special_ids) == (10, 0, (0,))
    keys = memgraft.KeySet.open(made / "keys.mgk")
    assert keys.metadata["split"]["num_held_out"] == 6
    assert keys.metadata["split"]["of"] == corpus.fingerprint
    assert keys.reserved == (0,)
    index = memgraft.NgramIndex.open(made / "index.mgi")
    assert index.keyset_fingerprint == keys.fingerprint
    train, _ = corpus.split(held_out=0.25, seed=7)
    stream = " ".join(map(str, train.tokens()))
    assert index.count(index.find((2, 3))) == stream.count("2 3")


def test_mine_straight_from_text_is_the_same(made, tmp_path):
    (made / "text" / "notes.csv").write_text("not text to us", encoding="utf-8")
    facts = ok_json(
        "mine", made / "text", "--tokenizer", made / "tokenizer.json", "-o", tmp_path / "k.mgk", "--budget", "all"
    )
    keys = memgraft.mine(memgraft.Corpus.open(made / "corpus"), budget=None)
    # The text was tokenised without the delimiter, which is in no key anyway.
    assert list(memgraft.KeySet.open(tmp_path / "k.mgk")) == list(keys)
    assert facts["num_keys"] == len(keys)
    assert facts["fingerprint"] == keys.fingerprint


def test_mine_options_reach_the_miner(made, tmp_path):
    out = tmp_path / "k.mgk"
    facts = ok_json(
        "mine", made / "corpus", "-o", out, "--orders", "1,5", "--budget", "1=3,5=2", "--min-count", "20",
        "--reserved", "2", "--memory", "64MiB", "--threads", "1",
    )  # fmt: skip
    assert facts["num_keys_by_order"] == {"1": 3, "5": 0} or facts["num_keys_by_order"] == {"1": 3}
    assert facts["split"] is None
    assert not any(2 in key for key in memgraft.KeySet.open(out))


def test_coverage_takes_the_held_out_part_by_itself(made):
    facts = ok_json("coverage", made / "index.mgi", made / "corpus")
    corpus = memgraft.Corpus.open(made / "corpus")
    _, held = corpus.split(held_out=0.25, seed=7)
    assert (facts["part"], facts["positions"]) == ("held-out", held.num_tokens)
    assert facts["corpus"] == held.fingerprint
    assert facts["mined_from_it"] is False
    assert ok_json("coverage", made / "index.mgi", made / "corpus", "--part", "train")["mined_from_it"] is True
    whole = ok_json("coverage", made / "keys.mgk", made / "corpus", "--part", "all")
    assert whole["positions"] == corpus.num_tokens
    assert whole["misses"] + sum(whole["hits"].values()) == corpus.num_tokens


def test_a_part_of_another_corpus_is_refused(made, tmp_path):
    ok("tokenize", made / "text", "--tokenizer", made / "tokenizer.json", "-o", tmp_path / "other")
    refused = memgraft_cli("coverage", made / "keys.mgk", tmp_path / "other", "--part", "held-out")
    assert refused.exit_code == 2
    assert "--part held-out: expected keys that were mined" in refused.stderr
    assert "give --part all" in refused.stderr


def test_coverage_of_the_whole_says_that_the_keys_come_from_it(made):
    assert ok_json("coverage", made / "keys.mgk", made / "corpus", "--part", "all")["mined_from_it"] is True
    said = ok("coverage", made / "keys.mgk", made / "corpus", "--part", "all").stderr
    assert "the keys were mined from these documents" in said


def test_coverage_finds_documents_that_the_mined_corpus_has_too(made, tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "old.txt").write_text("the cat sat on the mat and the cat ran", encoding="utf-8")
    (tmp_path / "text" / "new.txt").write_text("dog dog dog mat dog dog mat dog dog", encoding="utf-8")
    ok("tokenize", tmp_path / "text", "--tokenizer", made / "tokenizer.json", "--eos", "<eos>", "-o", tmp_path / "c")
    command = ("coverage", made / "keys.mgk", tmp_path / "c", "--mined-from", made / "corpus")
    facts = ok_json(*command)
    assert facts["mined_from_it"] is False
    assert facts["shared_with_mined"] == pytest.approx(10 / 19)
    told = ok(*command)
    assert "53% of this text is in the corpus that was mined" in told.stderr
    assert "not as a corpus, but from such text" in " ".join(told.stdout.split())
    # The sample beside the keys holds all of so few documents.
    assert ok_json(*command[:3])["shared_with_mined"] == facts["shared_with_mined"]
    assert "about 53% of this text is in the corpus that was mined" in ok(*command[:3]).stderr
    shutil.copy(made / "keys.mgk", tmp_path / "alone.mgk")
    assert ok_json("coverage", tmp_path / "alone.mgk", tmp_path / "c")["shared_with_mined"] is None
    other = memgraft_cli(*command[:4], tmp_path / "c")
    assert other.exit_code == 1
    assert "that the keys were mined from" in other.stderr


def test_split_writes_the_two_parts_that_mining_holds_apart(made, tmp_path):
    facts = ok_json("split", made / "corpus", "-o", tmp_path / "c", "--held-out", "0.25", "--seed", "7")
    whole = memgraft.Corpus.open(made / "corpus")
    for name, part in zip(("train", "held-out"), whole.split(held_out=0.25, seed=7), strict=True):
        written = memgraft.Corpus.open(tmp_path / f"c-{name}")
        assert written.fingerprint == part.fingerprint == facts[name.replace("-", "_")]["fingerprint"]
        assert (written.eos_id, written.vocab_size, written.tokenizer) == (0, 10, whole.tokenizer)
    keys = memgraft.mine(memgraft.Corpus.open(tmp_path / "c-train"), budget=30)
    assert list(keys) == list(memgraft.KeySet.open(made / "keys.mgk"))


def test_nothing_that_is_there_is_written_over_unless_asked(made, tmp_path):
    out = tmp_path / "out"
    for path in (out, tmp_path / "out.bin", tmp_path / "out-train.bin"):
        path.write_bytes(b"precious")
    commands = [
        ("mine", made / "corpus", "--budget", "30"),
        ("build", made / "keys.mgk"),
        ("tokenize", made / "text", "--tokenizer", made / "tokenizer.json"),
        ("split", made / "corpus", "--held-out", "0.3"),
        ("keys", "export", made / "keys.mgk"),
    ]
    for command in commands:
        result = memgraft_cli(*command, "-o", out)
        assert (result.exit_code, "is there already and is not written over" in result.stderr) == (2, True), command
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {b"precious"}
    for command in commands:
        ok(*command, "-o", out, "--overwrite")
    assert b"precious" not in {path.read_bytes() for path in tmp_path.iterdir()}


def test_records_of_experiments_and_grafts_are_checked(tmp_path):
    for name in ("plan.json", "graft-seed0/settings.json", "none-seed0/settings.json"):
        (tmp_path / "exp" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "exp" / name).write_text('{"steps": 3, "settings": {"bank": "abc"}}')
    result = {"arm": "none", "seed": 0, "held_out": {"overall": 10.8031}}
    (tmp_path / "exp" / "none-seed0" / "result.json").write_text(json.dumps(result))
    facts = ok_json("inspect", tmp_path / "exp")
    assert (facts["kind"], facts["none seed 0"], facts["unfinished"]) == ("experiment", 10.8031, ["graft-seed0"])
    assert "10.8031" in ok("inspect", tmp_path / "exp").stdout
    assert ok_json("verify", tmp_path / "exp")["verified"][0]["fingerprint"] == "abc"
    (tmp_path / "exp" / "none-seed0" / "result.json").write_text('{"arm": "none"}')
    broken = memgraft_cli("verify", tmp_path / "exp")
    assert (broken.exit_code, "expected the result of an arm" in broken.stderr) == (1, True)
    (tmp_path / "graft").mkdir()
    (tmp_path / "graft" / "graft.json").write_text("{}")
    (tmp_path / "graft" / "graft.safetensors").write_bytes(b"torn")
    broken = memgraft_cli("verify", tmp_path / "graft")
    assert (broken.exit_code, "expected the weights of a graft" in broken.stderr) == (1, True)


def test_lookup_takes_text(made):
    by_text = ok_json("lookup", made / "index.mgi", "--text", "the cat sat")
    assert by_text == ok_json("lookup", made / "index.mgi", "2", "3", "4")


def test_plan_weighs_budgets(made):
    answer = ok_json(
        "plan", made / "corpus", "--budgets", "30,6", "--held-out", "0.25", "--seed", "7", "--value-dim", "8"
    )
    small, large = answer["budgets"]
    assert (small["num_keys"], large["num_keys"]) == (6, len(memgraft.KeySet.open(made / "keys.mgk")))
    assert large["coverage"] == ok_json("coverage", made / "keys.mgk", made / "corpus")["coverage"]
    assert (answer["row_bytes"], small["value_bytes"], small["harvest_seconds"]) == (16, 96, None)
    assert "fallback" in ok("plan", made / "corpus", "--budgets", "30").stdout
    hot = ("--hot-rows", "3,1k", "--value-dim", "8", "--batch-tokens", "8")
    few, every = ok_json("plan", made / "corpus", "--budgets", "30", *hot)["hot_rows"]
    assert (few["num_rows"], few["device_bytes"], few["batch_tokens"]) == (3, 48, 8)
    assert (every["saved_share"], every["moved_bytes_per_batch"]) == (1.0, 0)
    assert 0 < few["saved_share"] < 1
    assert few["moved_bytes_per_batch"] + few["saved_bytes_per_batch"] == pytest.approx(few["rows_per_batch"] * 16)
    assert "rows on the device" in ok("plan", made / "corpus", "--budgets", "30", "--hot-rows", "3").stdout
    result = memgraft_cli("plan", made / "corpus", "--donor", "somewhere")
    assert (result.exit_code, "expected --tokenizer too" in result.stderr) == (2, True)


def test_inspect_text_tells_match_and_miss(made):
    result = ok(
        "inspect", made / "index.mgi", "--text", "the cat sat zebra the cat", "--tokenizer", made / "tokenizer.json"
    )
    lines = result.stdout.splitlines()
    assert lines[1].split() == ["'the'", "-", "miss"]
    assert "'the cat'" in lines[2]
    assert "'the cat sat'" in lines[3]
    assert "miss" in lines[4]
    matches = ok_json("inspect", made / "keys.mgk", "--text", "the cat", "--tokenizer", made / "tokenizer.json")[
        "tokens"
    ]
    keys = memgraft.KeySet.open(made / "keys.mgk")
    assert matches[0] == {"token": 2, "text": "the", "order": 0, "row": None}
    assert (matches[1]["match"], matches[1]["key"]) == ("the cat", [2, 3])
    assert keys.key(matches[1]["row"]) == (2, 3)
    assert matches[1]["count"] == keys.count(matches[1]["row"])


def test_inspect_tells_parts_of_characters(tmp_path):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = {piece: token for token, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(alphabet, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ids = tokenizer.encode("aé").ids
    memgraft.KeySet.from_keys([ids[:2], ids[1:]], counts=[2, 2], vocab_size=256).save(tmp_path / "keys.mgk")
    answer = ok_json("inspect", tmp_path / "keys.mgk", "--text", "aé🙂")
    shown = [(token["text"], token.get("match")) for token in answer["tokens"]]
    assert shown[:3] == [("a", None), ("é (1 of 2)", "aé"), ("é (2 of 2)", "é")]
    assert shown[3:] == [(f"🙂 ({part} of 4)", None) for part in (1, 2, 3, 4)]


def test_inspect_finds_the_tokenizer_beside(made):
    assert "'the cat'" in ok("inspect", made / "keys.mgk", "--text", "the cat").stdout


def test_inspect_refuses_another_tokenizer(made, tmp_path):
    other = make_tokenizer(tmp_path / "tokenizer.json", ["cat", "the"])
    result = memgraft_cli("inspect", made / "keys.mgk", "--text", "the cat", "--tokenizer", other)
    assert result.exit_code == 1
    assert "expected the tokenizer" in result.stderr
    assert "--tokenizer" in result.stderr


def test_inspect_facts(made, tmp_path):
    facts = ok_json("inspect", made / "keys.mgk", "--rows", "2")
    keys = memgraft.KeySet.open(made / "keys.mgk")
    assert (facts["kind"], facts["num_keys"], facts["keyset"]) == ("keys", len(keys), keys.fingerprint)
    assert [tuple(key["key"]) for key in facts["top_keys"]] == [keys.key(0), keys.key(1)]
    assert ok_json("inspect", made / "index.mgi")["kind"] == "index"
    for name, kind in (("keys.mgk", "keys"), ("index.mgi", "index")):
        shutil.copyfile(made / name, tmp_path / "named otherwise")
        assert ok_json("inspect", tmp_path / "named otherwise")["kind"] == kind
    corpus = ok_json("inspect", made / "corpus")
    assert (corpus["kind"], corpus["format"], corpus["num_documents"], corpus["longest_document"]) == (
        "corpus", "megatron", 22, 11,
    )  # fmt: skip


def test_keys_are_exported_with_their_text(made, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    ok("keys", "export", made / "keys.mgk", "-o", tmp_path / "k.parquet", "--tokenizer", made / "tokenizer.json")
    table = parquet.read_table(tmp_path / "k.parquet").to_pydict()
    tokenizer = memgraft.corpus.text.load_tokenizer(made / "tokenizer.json")
    assert table["text"] == [tokenizer.decode(key) for key in table["tokens"]]
    ok("keys", "import", tmp_path / "k.parquet", "-o", tmp_path / "again.mgk")
    assert (tmp_path / "again.mgk").read_bytes() == (made / "keys.mgk").read_bytes()
    other = make_tokenizer(tmp_path / "other.json", ["the"])
    refused = memgraft_cli("keys", "export", made / "keys.mgk", "-o", tmp_path / "x.parquet", "--tokenizer", other)
    assert refused.exit_code == 1
    assert "expected the tokenizer" in refused.stderr
    refused = memgraft_cli("keys", "export", made / "keys.mgk", "-o", tmp_path / "k.csv")
    assert refused.exit_code == 2
    assert "k.csv: expected a name that ends with .parquet or .pq" in refused.stderr
    assert not (tmp_path / "k.csv").exists()


def test_lookup(made, tmp_path):
    answer = ok_json("lookup", made / "index.mgi", 2, 3, 4)["sequences"][0]
    index = memgraft.NgramIndex.open(made / "index.mgi")
    rows, orders = index.lookup([2, 3, 4])
    assert (answer["rows"], answer["orders"]) == (rows.tolist(), orders.tolist())
    (tmp_path / "ids.txt").write_text("2 3\n\n3 2 3\n")
    sequences = ok_json("lookup", made / "keys.mgk", "--file", tmp_path / "ids.txt")["sequences"]
    assert [len(sequence["rows"]) for sequence in sequences] == [2, 3]
    assert "miss" in ok("lookup", made / "index.mgi", 2, 3).stdout


def test_parquet_round_trip_is_exact(made, tmp_path):
    pytest.importorskip("pyarrow")
    ok("keys", "export", made / "keys.mgk", "-o", tmp_path / "k.parquet")
    ok("keys", "import", tmp_path / "k.parquet", "-o", tmp_path / "k.mgk")
    assert (tmp_path / "k.mgk").read_bytes() == (made / "keys.mgk").read_bytes()
    for asked in (("build", "-o", tmp_path / "no.mgi"), ("mine", "-o", tmp_path / "no.mgk"), ("verify",)):
        refused = memgraft_cli(*asked, tmp_path / "k.parquet")
        assert refused.exit_code == 1
        assert "k.parquet: expected" in refused.stderr
        assert "`memgraft keys import` makes a key set of it" in refused.stderr
    import pyarrow as pa
    import pyarrow.parquet as pq

    foreign = pa.table({"tokens": [[1, 2], [3]], "count": [5, 9]})
    pq.write_table(foreign, tmp_path / "f.parquet")
    ok("keys", "import", tmp_path / "f.parquet", "-o", tmp_path / "f.mgk", "--vocab-size", "4")
    assert list(memgraft.KeySet.open(tmp_path / "f.mgk")) == [(3,), (1, 2)]
    for args, message in [
        ((tmp_path / "f.parquet",), "give --vocab-size"),
        ((made / "keys.mgk", "--vocab-size", "4"), "expected a Parquet file"),
        ((tmp_path / "f.parquet", "--vocab-size", "3"), "vocabulary"),
    ]:
        result = memgraft_cli("keys", "import", *args, "-o", tmp_path / "no.mgk")
        assert result.exit_code in (1, 2)
        assert message in result.stderr
        assert not (tmp_path / "no.mgk").exists()


def test_verify_names_what_is_damaged(made, tmp_path):
    assert len(ok_json("verify", made / "keys.mgk", made / "index.mgi", made / "corpus")["verified"]) == 3
    damaged = bytearray((made / "index.mgi").read_bytes())
    damaged[-100] ^= 1
    (tmp_path / "index.mgi").write_bytes(damaged)
    (tmp_path / "keys.mgk").write_bytes((made / "keys.mgk").read_bytes()[:-50])
    result = memgraft_cli("verify", made / "keys.mgk", tmp_path / "index.mgi", tmp_path / "keys.mgk", "--json")
    assert result.exit_code == 1
    facts = json.loads(result.stdout)
    assert [item["path"] for item in facts["failed"]] == [str(tmp_path / "index.mgi"), str(tmp_path / "keys.mgk")]
    assert [item["path"] for item in facts["verified"]] == [str(made / "keys.mgk")]
    assert str(tmp_path / "index.mgi") in result.stderr


@pytest.mark.parametrize("verb", ["inspect", "verify"])
def test_what_an_interrupted_command_left_is_named_as_such(verb, tmp_path):
    (tmp_path / "bank.partial").mkdir()
    (tmp_path / "bank.partial" / "done.log").write_bytes(b"")
    refused = memgraft_cli(verb, tmp_path / "bank.partial")
    assert refused.exit_code == 1
    assert "bank.partial: is not finished: run the command that began it again" in refused.stderr


def bad_text(folder):
    (folder / "text").mkdir()
    (folder / "text" / "a.txt").write_bytes(b"fine")
    (folder / "text" / "b.txt").write_bytes(b"caf\xe9!")


def empty_text(folder):
    (folder / "text").mkdir()
    (folder / "text" / "a.txt").write_bytes(b"")


def no_text(folder):
    (folder / "text").mkdir()


def only_parquet(folder):
    (folder / "text").mkdir()
    (folder / "text" / "a.parquet").write_bytes(b"PAR1")


def bad_jsonl(folder):
    (folder / "text").mkdir()
    (folder / "text" / "a.jsonl").write_bytes(b'{"text": "x"}\n{"body": "x"}\n')


def bad_jsonl_bytes(folder):
    (folder / "text").mkdir()
    (folder / "text" / "a.jsonl").write_bytes(b'{"text": "x"}\n{"text": "\xff"}\n')


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (bad_text, r"b.txt: expected UTF-8, found byte 0xe9 at offset 3"),
        (bad_jsonl_bytes, r"a.jsonl: expected UTF-8, found byte 0xff at offset 24"),
        (
            bad_jsonl,
            'a.jsonl: line 2: expected an object with a string "text", found \'{"body": "x"}\'; its strings are body: ',
        ),
        (empty_text, r"/text: expected at least one token, found none"),
        (no_text, "expected text files"),
        (only_parquet, "found none among a.parquet; tokenize --column names the column"),
    ],
)
def test_bad_text(make, message, made, tmp_path):
    make(tmp_path)
    result = memgraft_cli(
        "tokenize", tmp_path / "text", "--tokenizer", made / "tokenizer.json", "-o", tmp_path / "corpus"
    )
    assert (result.exit_code, result.stdout) == (1, "")
    assert message in result.stderr
    assert os.listdir(tmp_path) == ["text"]


def test_bad_tokenizers(made, tmp_path):
    text, out = made / "text", tmp_path / "corpus"
    for args, code, message in [
        (
            ("--tokenizer", made / "tokenizer.json", "--vocab-size", "9"),
            1,
            "at most 9 ids (the declared vocab_size), found 10",
        ),
        (("--tokenizer", tmp_path / "none.json"), 1, "expected a tokenizer.json, found no such file"),
        (("--tokenizer", made / "corpus.json"), 1, "expected a tokenizer.json of the tokenizers library"),
        (("--tokenizer", made / "tokenizer.json", "--eos", "<end>"), 2, "got '<end>'; special tokens there: <eos>"),
        (("--tokenizer", made / "tokenizer.json", "--eos", "10"), 2, "eos: expected a token of"),
    ]:
        result = memgraft_cli("tokenize", text, *args, "-o", out)
        assert (result.exit_code, message in result.stderr) == (code, True), result.stderr
    assert os.listdir(tmp_path) == []


def test_unwritable_outputs_are_refused_before_the_work(made, tmp_path):
    out = tmp_path / "nowhere" / "x"
    for args in [
        ("mine", made / "corpus", "-o", out),
        ("build", made / "keys.mgk", "-o", out),
        ("tokenize", made / "text", "--tokenizer", made / "tokenizer.json", "-o", out),
        ("keys", "export", made / "keys.mgk", "-o", out),
        ("keys", "import", made / "keys.mgk", "-o", out),
    ]:
        result = memgraft_cli(*args)
        assert result.exit_code == 1, args
        assert "found no such folder; make it" in result.stderr
        assert str(out) in result.stderr
    result = memgraft_cli("mine", made / "corpus", "-o", tmp_path)
    assert (result.exit_code, "found a folder; add a name" in result.stderr) == (1, True)
    assert os.listdir(tmp_path) == []


def test_usage_errors_exit_with_2(made, tmp_path):
    for args, message in [
        (("mine", made / "corpus", "-o", tmp_path / "k.mgk", "--orders", "0"), "orders: expected some of 1 to 16"),
        (("mine", made / "corpus", "-o", tmp_path / "k.mgk", "--orders", "a"), "orders: expected numbers"),
        (("mine", made / "corpus", "-o", tmp_path / "k.mgk", "--budget", "many"), "budget: expected a number"),
        (("mine", made / "corpus", "-o", tmp_path / "k.mgk", "--memory", "much"), "a size such as"),
        (("coverage", made / "index.mgi", made / "corpus", "--part", "some"), "part: expected"),
        (("coverage", made / "corpus", made / "corpus"), "expected a bank, an index.mgi or a keys.mgk"),
        (("lookup", made / "index.mgi"), "as arguments or --file"),
        (("inspect", made / "corpus", "--text", "x"), "found a corpus"),
        (("inspect", made / "index.mgi", "--text", "", "--tokenizer", made / "tokenizer.json"), "at least one token"),
        (("mine", made / "corpus"), "Missing option"),
    ]:
        result = memgraft_cli(*args)
        assert (result.exit_code, message in result.stderr.replace("\n", " ")) == (2, True), result.stderr
    assert os.listdir(tmp_path) == []


def test_data_errors_exit_with_1(made, tmp_path):
    for args, message in [
        (("mine", tmp_path / "none.bin", "-o", tmp_path / "k.mgk"), "none.bin"),
        (("mine", made / "corpus", "-o", tmp_path / "k.mgk", "--vocab-size", "5"), "found "),
        (("coverage", made / "index.mgi", tmp_path / "none.bin"), "none.bin"),
        (("lookup", made / "index.mgi", "99"), "99"),
        (("build", made / "index.mgi", "-o", tmp_path / "i.mgi"), "index.mgi"),
        (("inspect", tmp_path / "bank"), "not found: expected a bank directory"),
        (("inspect", tmp_path / "bank", "--bank", "b", "--text", "x"), "not found: expected a bank directory"),
    ]:
        result = memgraft_cli(*args)
        assert (result.exit_code, message in result.stderr) == (1, True), result.stderr
    assert os.listdir(tmp_path) == []


@pytest.fixture
def bank(made, tmp_path):
    keys = memgraft.KeySet.open(made / "keys.mgk")
    values = np.arange(len(keys) * 8, dtype=np.float32).reshape(len(keys), 1, 8)
    facts = {"fingerprint": "e" * 64, "file_fingerprint": keys.metadata["tokenizer"]}
    donor = {"fingerprint": "d" * 64, "name": "tiny"}
    memgraft.Bank.create(tmp_path / "bank", keys=keys, values=values, taps=(3,), donor=donor, tokenizer=facts)
    return tmp_path / "bank"


def test_bank_inspect_coverage_lookup_verify(made, bank):
    facts = ok_json("inspect", bank)
    assert (facts["kind"], facts["taps"], facts["value_dim"], facts["donor"]["name"]) == ("bank", [3], 8, "tiny")
    assert facts["split"]["num_held_out"] == 6
    result = ok("inspect", bank, "--text", "the cat", "--tokenizer", made / "tokenizer.json")
    assert "'the cat'" in result.stdout
    wrong = make_tokenizer(bank.parent / "tokenizer.json", ["the"])
    result = memgraft_cli("inspect", bank, "--text", "the cat")
    assert (result.exit_code, str(wrong) in result.stderr) == (1, True)
    by_index = ok_json("coverage", made / "index.mgi", made / "corpus")
    assert ok_json("coverage", bank, made / "corpus") == {**by_index, "shared_with_mined": None}
    assert ok_json("lookup", bank, 2, 3) == ok_json("lookup", made / "index.mgi", 2, 3)
    assert ok_json("verify", bank)["verified"][0]["kind"] == "bank"


def test_inspect_takes_a_bank_s_tokenizer_saved_again_and_no_other(made, tmp_path):
    from tokenizers import Tokenizer

    from memgraft.tokenizer import open_tokenizer, tokenizer_facts

    keys = memgraft.KeySet.open(made / "keys.mgk")
    values = np.zeros((len(keys), 1, 8), np.float32)
    facts = tokenizer_facts(open_tokenizer(made / "tokenizer.json"), keys.vocab_size)
    memgraft.Bank.create(
        tmp_path / "bank", keys=keys, values=values, taps=(3,), donor={"name": "tiny"}, tokenizer=facts
    )
    again = Tokenizer.from_file(str(made / "tokenizer.json"))
    again.enable_padding(length=4)
    again.add_special_tokens(["<|later|>"])
    again.save(str(tmp_path / "again.json"))
    shown = ok("inspect", tmp_path / "bank", "--text", "the cat", "--tokenizer", tmp_path / "again.json")
    assert "'the cat'" in shown.stdout
    other = make_tokenizer(tmp_path / "other.json", ["the"])
    result = memgraft_cli("inspect", tmp_path / "bank", "--text", "the cat", "--tokenizer", other)
    assert (result.exit_code, "expected the tokenizer" in result.stderr) == (1, True)


def flip(path):
    data = bytearray(path.read_bytes())
    data[-5] ^= 0x40
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("index.mgi", lambda path: os.truncate(path, 4096)),
        ("index.mgi", flip),
        ("keys.mgk", flip),
        ("keys.mgk", os.remove),
        ("values-00001-of-00001.safetensors", flip),
        ("values-00001-of-00001.safetensors", os.remove),
        ("bank.json", lambda path: path.write_text(path.read_text().replace('"1.0"', '"9.0"'))),
        ("bank.json", lambda path: path.write_text("{")),
        ("bank.json", os.remove),
    ],
)
def test_verify_refuses_a_damaged_bank(name, change, bank):
    assert name in os.listdir(bank)
    change(bank / name)
    result = memgraft_cli("verify", bank)
    assert result.exit_code == 1
    assert name in result.stderr


def test_verify_refuses_a_swapped_file(bank):
    other = memgraft.KeySet.from_keys([(1, 2), (3,)], vocab_size=10)
    memgraft.NgramIndex.build(other).save(bank / "index.mgi")
    result = memgraft_cli("verify", bank)
    assert (result.exit_code, "index.mgi" in result.stderr, "expected" in result.stderr) == (1, True, True)


def start_mining(tmp_path):
    rng = np.random.default_rng(0)
    with CorpusWriter(tmp_path / "corpus", vocab_size=30_000) as writer:
        writer.add(rng.integers(0, 30_000, 6_000_000))
        writer.finish()
    command = [sys.executable, "-m", "memgraft.cli", "mine", tmp_path / "corpus", "-o", tmp_path / "keys.mgk"]
    process = subprocess.Popen([*command, "--memory", "8MiB", "--threads", "1"], stderr=subprocess.PIPE, text=True)
    assert process.stderr.readline().startswith("scan:")
    time.sleep(0.1)
    assert process.poll() is None
    return process


def test_ctrl_c_exits_with_130(tmp_path):
    process = start_mining(tmp_path)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate()
    assert process.returncode == 130, stderr
    assert "memgraft: interrupted; nothing was written" in stderr
    assert sorted(os.listdir(tmp_path)) == ["corpus.bin", "corpus.idx", "corpus.json"]


def test_kill_leaves_no_final_file(tmp_path):
    process = start_mining(tmp_path)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert sorted(os.listdir(tmp_path)) == ["corpus.bin", "corpus.idx", "corpus.json"]
