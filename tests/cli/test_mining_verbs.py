"""`mine --partial` and `keys merge` give what `mine` gives."""

import json
import re
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

import memgraft
from memgraft.cli.app import build_app
from memgraft.corpus import CorpusWriter


def run(*args):
    return CliRunner().invoke(build_app(), [str(arg) for arg in args], catch_exceptions=False)


@pytest.fixture
def corpus(tmp_path):
    rng = np.random.default_rng(2)
    with CorpusWriter(tmp_path / "corpus", vocab_size=60, eos_id=0) as writer:
        for size in rng.integers(1, 60, 80):
            writer.add(rng.zipf(1.5, size) % 60)
        return writer.finish()


def test_parts_merge_into_the_bytes_of_mine(tmp_path, corpus):
    for rank in range(3):
        done = run("mine", "--partial", "--rank", rank, "--world", 3, corpus, "-o", tmp_path / f"{rank}.mgr", "--json")
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["rank"] == rank
        # What is merged are records; "sort" counts tokens.
        assert re.search(r"^sort: \d+ tokens$", done.stderr, re.M)
        assert re.search(r"^merge$", done.stderr, re.M)
    parts = [tmp_path / f"{rank}.mgr" for rank in range(3)]
    shown = json.loads(run("inspect", parts[1], "--json").stdout)
    assert (shown["kind"], shown["ranks"], shown["orders"]) == ("part", [1], [2, 3, 4])
    assert json.loads(run("verify", parts[1], "--json").stdout)["verified"][0]["fingerprint"] == shown["shards"][0]
    # A user may name it otherwise.
    shutil.copyfile(parts[1], tmp_path / "part")
    assert json.loads(run("inspect", tmp_path / "part", "--json").stdout)["kind"] == "part"
    assert run("keys", "merge", *parts[:2], "-o", tmp_path / "two.mgr").exit_code == 0
    choosing = ["--budget", 90, "--policy", "gain", "--exclude", corpus, "--exclude-from", 4]
    merged = run("keys", "merge", tmp_path / "two.mgr", parts[2], "-o", tmp_path / "merged.mgk", *choosing, "--json")
    assert merged.exit_code == 0, merged.output
    one = run("mine", corpus, "-o", tmp_path / "one.mgk", *choosing, "--json")
    assert one.exit_code == 0, one.output
    assert (tmp_path / "merged.mgk").read_bytes() == (tmp_path / "one.mgk").read_bytes()
    facts = [json.loads(result.stdout) for result in (merged, one)]
    assert [{**fact, "keys": None} for fact in facts] == [{**facts[1], "keys": None}] * 2
    for i in range(2):
        assert run("keys", "merge", *parts, "--part", f"{i}/2", "-o", tmp_path / f"range-{i}.mgr").exit_code == 0
    ranges = [tmp_path / "range-0.mgr", tmp_path / "range-1.mgr"]
    assert run("keys", "merge", *ranges, "-o", tmp_path / "ranges.mgk", *choosing).exit_code == 0
    assert (tmp_path / "ranges.mgk").read_bytes() == (tmp_path / "one.mgk").read_bytes()
    sample = (tmp_path / "one.mgk.sample").read_bytes()
    assert (tmp_path / "merged.mgk.sample").read_bytes() == (tmp_path / "ranges.mgk.sample").read_bytes() == sample


def test_sets_of_sets_keep_the_sample_of_what_they_were_mined_from(tmp_path, corpus):
    halves = tmp_path / "of-train.bin", tmp_path / "of-held-out.bin"
    assert run("split", corpus, "--held-out", 0.5, "-o", tmp_path / "of").exit_code == 0
    for half, name in zip(halves, ("a", "b"), strict=True):
        assert run("mine", half, "-o", tmp_path / f"{name}.mgk").exit_code == 0
    one, two, out = tmp_path / "a.mgk", tmp_path / "b.mgk", tmp_path / "both.mgk"

    def shared(keys):
        return json.loads(run("coverage", keys, corpus, "--json").stdout)["shared_with_mined"]

    assert run("keys", "union", one, two, "-o", out).exit_code == 0
    assert shared(out) == 1 > shared(one)
    assert run("keys", "union", out, one, "-o", tmp_path / "again.mgk").exit_code == 0
    again, both = (json.loads((tmp_path / f"{name}.mgk.sample").read_text()) for name in ("again", "both"))
    assert [again[name] for name in ("corpus", "documents", "runs")] == [
        both[name] for name in ("corpus", "documents", "runs")
    ]
    assert run("keys", "subtract", two, one, "-o", tmp_path / "rest.mgk").exit_code == 0
    assert shared(tmp_path / "rest.mgk") == shared(two)
    # An older set has none, so that nothing is said of the text of both.
    (tmp_path / "b.mgk.sample").unlink()
    told = run("keys", "union", one, two, "-o", out, "--overwrite")
    assert "coverage needs --mined-from" in told.stderr
    assert not (tmp_path / "both.mgk.sample").exists()
    assert shared(out) is None


def test_what_will_be_written_is_said_before_the_start(tmp_path, corpus, monkeypatch):
    with CorpusWriter(tmp_path / "large", vocab_size=900) as writer:
        for document in np.random.default_rng(0).integers(0, 900, (40, 5000)):
            writer.add(document.astype(np.uint32))
        large = writer.finish()
    usage = shutil.disk_usage(tmp_path)
    said = re.compile(
        r"^about ([\d.]+) (?:MB|kB) will be written to (\S+) for (.+); 6.0 MB are free there$", re.MULTILINE
    )
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=6_000_000))
    keys, small = tmp_path / "keys.mgk", ("--threads", 1, "--memory", "2MiB")
    mined = run("mine", large, "-o", keys, *small)
    assert mined.exit_code == 0, mined.output
    [(_, folder, what)] = said.findall(mined.stderr)
    assert folder == str(tmp_path)
    rates = r"\([\d.]+ bytes a token, [\d.]+ up to order 2, [\d.]+ up to order 3; --sketch takes less\)"
    assert re.fullmatch(rf"what outgrows the memory {rates}", what)
    sketched = run("mine", large, "-o", keys, *small, "--sketch", "--overwrite")
    assert "less what occurs once" in said.search(sketched.stderr)[3]
    for rank in range(2):
        part = run(
            "mine", large, "--partial", "--orders", 2, "--rank", rank, "--world", 2, "-o", tmp_path / f"{rank}.mgr"
        )
        assert part.exit_code == 0, part.output
    [(_, folder, what)] = said.findall(run("mine", large, "--partial", "-o", tmp_path / "part.mgr").stderr)
    assert folder == str(tmp_path)
    assert what.startswith("blocks and the part that they are merged into (")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=600_000))
    said = re.compile(said.pattern.replace("6.0 MB", "600.0 kB"), re.MULTILINE)
    parts = [tmp_path / "0.mgr", tmp_path / "1.mgr"]
    merged = run("keys", "merge", *parts, "-o", tmp_path / "merged.mgr")
    assert merged.exit_code == 0, merged.output
    [(_, _, what)] = said.findall(merged.stderr)
    assert what == "the merge of 2 parts"
    # Keys of few parts take no room.
    assert not said.search(run("keys", "merge", *parts, "--orders", 2, "-o", tmp_path / "merged.mgk").stderr)
    # Little for much room is no news.
    monkeypatch.undo()
    assert "will be written" not in run("mine", "--partial", corpus, "-o", tmp_path / "small.mgr").stderr


def test_verify_finds_a_damaged_part(tmp_path, corpus):
    run("mine", "--partial", corpus, "-o", tmp_path / "0.mgr")
    data = bytearray((tmp_path / "0.mgr").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "0.mgr").write_bytes(data)
    broken = run("verify", tmp_path / "0.mgr")
    assert broken.exit_code == 1
    assert "0.mgr" in broken.stderr


def test_required_keys_come_from_a_file(tmp_path, corpus):
    (tmp_path / "keys.txt").write_text("1 59\n[2, 59, 58]\n\n")
    done = run("mine", corpus, "-o", tmp_path / "keys.mgk", "--budget", 9, "--require", tmp_path / "keys.txt", "--json")
    assert done.exit_code == 0, done.output
    (tmp_path / "bad.txt").write_text("1 2\nx y\n")
    refused = run("mine", corpus, "-o", tmp_path / "bad.mgk", "--require", tmp_path / "bad.txt")
    assert refused.exit_code == 1
    assert "line 2: expected token ids" in refused.stderr


def test_misuse_is_named(tmp_path, corpus):
    run("mine", "--partial", "--world", 2, corpus, "-o", tmp_path / "0.mgr")
    missing = run("keys", "merge", tmp_path / "0.mgr", "-o", tmp_path / "keys.mgk")
    assert missing.exit_code == 1
    assert "shard 1 is missing" in missing.stderr
    odd = run("keys", "merge", tmp_path / "0.mgr", "--part", "3/2", "-o", tmp_path / "x.mgr")
    assert odd.exit_code == 2
    assert "--part: expected range I of N" in odd.stderr
    useless = run("mine", "--partial", "--sketch", corpus, "-o", tmp_path / "1.mgr")
    assert useless.exit_code == 2
    assert "--sketch: expected without --partial" in useless.stderr
    assert not (tmp_path / "1.mgr").exists()


@pytest.mark.parametrize(
    "option",
    [
        ("--budget", 9),
        ("--policy", "gain"),
        ("--min-count", 3),
        ("--min-documents", 2),
        ("--exclude", "corpus"),
        ("--exclude-from", 3),
        ("--require", "keys.txt"),
        ("--overwrite",),
    ],
)
def test_a_run_file_heeds_no_choice_of_keys(tmp_path, corpus, option):
    part = tmp_path / "part.mgr"
    refused = run("mine", "--partial", corpus, "-o", part, *option)
    assert refused.exit_code == 2
    assert f"{option[0]}: expected no such option here" in refused.stderr
    assert ("memgraft keys merge" in refused.stderr) == (option[0] != "--overwrite")
    assert not part.exists()
    refused = run("keys", "merge", part, "-o", tmp_path / "merged.mgr", *option)
    assert refused.exit_code == 2
    assert f"{option[0]}: expected no such option here" in refused.stderr


def test_options_that_need_another_are_refused(tmp_path, corpus):
    for option, needed in (("--rank", "--partial"), ("--world", "--partial"), ("--exclude-from", "--exclude")):
        refused = run("mine", corpus, "-o", tmp_path / "keys.mgk", option, 2)
        assert refused.exit_code == 2
        assert f"{option}: expected no such option here" in refused.stderr
        assert needed in refused.stderr


def test_coverage_tells_folders_and_columns_apart(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rng = np.random.default_rng(4)
    rows = {"code": rng.integers(1, 9, (20, 30)).tolist(), "books": rng.integers(5, 40, (20, 30)).tolist()}
    for name, documents in rows.items():
        (tmp_path / "tokens" / name).mkdir(parents=True)
        with CorpusWriter(tmp_path / "tokens" / name / "corpus", vocab_size=60) as writer:
            writer.add_many(np.concatenate(documents), np.full(20, 30))
            writer.finish()
    listed = [(name, rows[name][place]) for place in range(20) for name in rows]
    table = pa.table({"input_ids": [document for _, document in listed], "source": [name for name, _ in listed]})
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=7)
    keys = tmp_path / "keys.mgk"
    mined = run("mine", tmp_path / "tokens" / "code", "-o", keys, "--vocab-size", 60)
    assert mined.exit_code == 0, mined.output
    by_folder = run("coverage", keys, tmp_path / "tokens", "--by-folder", "--json")
    by_column = run("coverage", keys, tmp_path / "rows.parquet", "--by-column", "source", "--json")
    assert by_folder.exit_code == by_column.exit_code == 0, by_folder.output + by_column.output
    folders, column = (json.loads(result.stdout)["domains"] for result in (by_folder, by_column))
    assert list(column) == ["books", "code"]
    assert [folders[str(tmp_path / "tokens" / name)] for name in column] == list(column.values())
    assert column["books"]["fallback_share"] > 0.3 > column["code"]["fallback_share"]
    assert "books: " in by_column.stderr
    assert "code: " not in by_column.stderr
    for arguments, message in (
        ((tmp_path / "rows.parquet", "--by-column", "kind"), "expected a column 'kind'"),
        ((tmp_path / "rows.parquet", "--by-column", "input_ids"), "one value a row"),
        ((tmp_path / "rows.parquet", "--by-folder"), "one folder of folders"),
        ((tmp_path / "tokens" / "code", "--by-folder"), "found none; name the paths"),
        ((tmp_path / "tokens" / "code", "--by-column", "source"), "expected Parquet files"),
        ((tmp_path / "rows.parquet", "--by-column", "source", "--eos-id", 7), "a document in each of the 40 rows"),
    ):
        refused = run("coverage", keys, *arguments)
        assert refused.exit_code in (1, 2)
        assert message in refused.stderr
    split = ["--held-out", 0.2, "--vocab-size", 60, "-o", tmp_path / "split.mgk"]
    assert run("mine", tmp_path / "rows.parquet", *split).exit_code == 0
    refused = run("coverage", tmp_path / "split.mgk", tmp_path / "rows.parquet", "--by-column", "source")
    assert "--by-column: expected --part all" in refused.stderr


def test_coverage_warns_above_30_percent_and_names_the_budget(tmp_path):
    chances = 1 / np.arange(1, 4001)
    tokens = np.random.default_rng(0).choice(4000, 60_000, p=chances / chances.sum())
    with CorpusWriter(tmp_path / "text", vocab_size=4000) as writer:
        writer.add(tokens.astype(np.uint32))
        text = writer.finish()
    needed = int(np.searchsorted(np.cumsum(chances) / chances.sum(), 0.7))
    said = {}
    for number in (100, 2 * needed):
        keys = memgraft.KeySet.from_keys([(token,) for token in range(number)], range(number, 0, -1), vocab_size=4000)
        keys.save(tmp_path / f"{number}.mgk")
        done = run("coverage", tmp_path / f"{number}.mgk", text)
        assert done.exit_code == 0, done.output
        assert ("65536:" in done.stdout, "8192:" in done.stdout) == (False, True)  # of 60,000 tokens
        said[number] = re.search(r"about ([\d,]+)\s+keys\s+like\s+these\s+would\s+leave\s+no\s+more", done.stderr)
    assert said[2 * needed] is None
    assert needed / 1.5 < int(said[100][1].replace(",", "")) < needed * 1.5
    # An index has the keys in itself, and says the same without their file beside it.
    (tmp_path / "alone").mkdir()
    assert run("build", tmp_path / "100.mgk", "-o", tmp_path / "alone" / "index.mgi").exit_code == 0
    assert said[100][0] in run("coverage", tmp_path / "alone" / "index.mgi", text).stderr


def test_plan_weighs_policies(corpus):
    done = run("plan", corpus, "--budgets", "9,60", "--policies", "all", "--held-out", "0.2", "--json")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)["budgets"]
    assert [fact["policy"] for fact in facts] == [
        name for name in ("shares", "count", "documents", "gain") for _ in range(2)
    ]
    assert all(0 < fact["rows_per_token"]["8192"] < 1 for fact in facts)
    table = run("plan", corpus, "--budgets", "9", "--held-out", "0.2")
    assert "rows a" in table.stdout
    assert max(map(len, map(str.rstrip, table.stdout.splitlines()))) <= 80
    refused = run("plan", corpus, "--budgets", "9", "--policies", "best")
    assert refused.exit_code == 2
    assert "policies: expected some of" in refused.stderr


@pytest.mark.parametrize(("tokens", "said"), [(3_000_000, "524,288 tokens"), (3000, "the 600 tokens held out")])
def test_plan_says_of_how_many_tokens_the_rows_are(tmp_path, tokens, said):
    documents = np.random.default_rng(0).integers(1, 50, (10, tokens // 10), dtype=np.uint32)
    with CorpusWriter(tmp_path / "text", vocab_size=50) as writer:
        writer.add_many(documents.ravel(), np.full(10, tokens // 10))
        text = writer.finish()
    done = run("plan", text, "--budgets", "9", "--orders", "2", "--held-out", "0.2")
    assert done.exit_code == 0, done.output
    assert f"rows a token: different rows of {said};" in done.stderr
    assert f"covered: of the {tokens // 5:,} tokens of 2 documents held out" in done.stderr


@pytest.mark.parametrize("longest", [200, 20_000])
def test_plan_names_a_document_that_is_much_of_what_is_held_out(tmp_path, longest):
    lengths = np.full(60, 200)
    lengths[10:20] = longest  # one in six, so that some are held out
    with CorpusWriter(tmp_path / "text", vocab_size=50) as writer:
        writer.add_many(np.random.default_rng(0).integers(1, 50, lengths.sum(), dtype=np.uint32), lengths)
        text = writer.finish()
    given = ("plan", text, "--budgets", "9", "--orders", "2", "--held-out", "0.1")
    facts = json.loads(run(*given, "--json").stdout)
    _, held = memgraft.Corpus.open(text).split(held_out=0.1, seed=0)
    assert facts["documents"] == held.num_documents == 6
    assert facts["largest_document"] == max(len(held.document(number)) for number in range(6)) == longest
    share = longest / held.num_tokens
    assert (f"one document has {share:.0%} of them" in run(*given).stderr) == (longest == 20_000)
