import importlib
import inspect
import json
import os
import shlex
import subprocess
import sys
from typing import get_args

import pytest
import typer
from typer.testing import CliRunner

from memgraft import system
from memgraft.cli import common
from memgraft.cli.app import VERBS, build_app
from memgraft.cli.examples import EXAMPLES
from memgraft.cli.sizes import Count, Share, parse_count, parse_counts, parse_range
from memgraft.controls import ARMS
from memgraft.errors import ArgumentError, ConfigError, FormatError


def run_raising(error):
    app = typer.Typer()

    @app.command()
    @common.verb
    def boom() -> None:
        common.keeps("shard 3 is kept")
        raise error

    return CliRunner().invoke(app, [])


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (FormatError("a.mgi: expected x, found y"), 1, "memgraft: a.mgi: expected x, found y\n"),
        (ArgumentError("orders: expected 1..16"), 2, "memgraft: orders: expected 1..16\n"),
        (ConfigError("no such site"), 2, "memgraft: no such site\n"),
        (PermissionError(13, "Permission denied", "/x/y"), 1, "memgraft: /x/y: Permission denied\n"),
        (KeyboardInterrupt(), 130, "memgraft: interrupted; shard 3 is kept\n"),
    ],
)
def test_errors_become_one_line_and_an_exit_code(error, code, text):
    result = run_raising(error)
    assert (result.exit_code, result.stderr, result.stdout) == (code, text, "")


def test_an_interrupted_verb_says_of_the_disk_what_is_so(tmp_path):
    out, partial = tmp_path / "bank", tmp_path / "bank.partial"
    app = typer.Typer()

    @app.command()
    @common.verb
    def stopped() -> None:
        common.keeps("rows are in bank.partial", partial, out)
        raise KeyboardInterrupt

    def said():
        return CliRunner().invoke(app, []).stderr.removeprefix("memgraft: interrupted; ")

    assert said() == "nothing was written\n"
    partial.mkdir()
    assert said() == "nothing was written\n"
    (partial / "0.values").write_bytes(b"0")
    assert said() == "rows are in bank.partial\n"
    partial.rename(out)
    assert said() == f"{out} is there\n"


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ('found bytes; give dtype="uint32"', "found bytes; give --dtype uint32"),
        ("give eos_id= (GPT-2: 50256)", "give --eos-id (GPT-2: 50256)"),
        ('or documents="file" to', "or --file-is-document to"),
        ("give tokenizer=<tokenizer.json>, or", "give --tokenizer TOKENIZER.JSON, or"),
        ("expected int32 as dtype= says", "expected int32 as --dtype says"),
        ("harvest with resume=True", "harvest with --resume"),
        ("give where it is now as bank= (x)", "give where it is now as --bank (x)"),
        ("data/seed=3/a.bin: give seed=.", "data/seed=3/a.bin: give --seed."),
        ("seed=3/a.bin: expected", "seed=3/a.bin: expected"),
        ("give the whole, or held_out=", "give the whole, or --held-out"),
        ("parts; give separator='<|end|>'", "parts; give --separator '<|end|>'"),
        ("pass fallback=FallbackConfig(...)", "pass fallback=FallbackConfig(...)"),
    ],
)
def test_arguments_of_the_library_are_named_as_options(message, shown):
    assert common.as_options(message) == shown


def test_a_bug_is_not_swallowed():
    result = run_raising(ZeroDivisionError("x"))
    assert isinstance(result.exception, ZeroDivisionError)


def test_emit_json_is_one_object(capsys):
    common.emit({"rows": 3, "by_order": {2: 1}}, json=True)
    assert json.loads(capsys.readouterr().out) == {"rows": 3, "by_order": {"2": 1}}


def test_a_table_prints_numbers_as_options_take_them_and_folds_long_lists(capsys):
    facts = {"num_rows": 3000000, "by_order": {2: 1000, 3: None}, "reserved": [50256], "ids": list(range(100, 200))}
    common.emit(facts, json=False)
    out = capsys.readouterr().out
    assert "3000000" in out
    assert "2: 1000, 3: -" in out
    assert "50256" in out
    assert "107, … (100 in all" in out
    assert "num rows" in out


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3000", 3000), ("3_000", 3000), ("3,000", 3000), ("3k", 3000), ("3K", 3000), ("3e6", 3000000),
        ("1.5M", 1500000), ("1,234,567", 1234567), ("2.5e3", 2500), ("0", 0),
    ],
)  # fmt: skip
def test_counts_are_read_as_people_write_them(text, number):
    assert parse_count("budget", text) == number


@pytest.mark.parametrize("text", ["", "k", "3,00", "1.5", "3ee6", "-3", "1e99", "0x10", "3 000", "1.2345k"])
def test_what_is_no_whole_number_is_refused(text):
    with pytest.raises(ArgumentError, match="budget: expected a number such as 3000"):
        parse_count("budget", text)


def test_lists_and_ranges():
    assert parse_counts("budgets", "10k,100,1M") == [10000, 100, 1000000]
    assert parse_range("orders", "2-4") == [2, 3, 4]
    assert parse_range("orders", "1,3-5") == [1, 3, 4, 5]
    for bad in ("", "4-2", "2-", "a", "2,,3", "1-99999"):
        with pytest.raises(ArgumentError, match="orders: expected numbers"):
            parse_range("orders", bad)


def test_a_log_is_told_how_far_a_stage_is(capsys, monkeypatch):
    monkeypatch.setattr(common, "LOG_SECONDS", 0.0)
    with common.progress("tokens") as report:
        report("mine", 10, 30)
        report("mine", 30, 30)
        report("mine", 30, 30)
    assert capsys.readouterr().err.splitlines() == ["mine: 10 of 30 tokens", "mine: 30 tokens"]


def test_python_m_memgraft_is_the_command():
    result = subprocess.run([sys.executable, "-m", "memgraft", "--version"], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("memgraft ")
    wrong = subprocess.run([sys.executable, "-m", "memgraft", "verb"], capture_output=True, text=True, check=False)
    assert "Usage: memgraft [OPTIONS]" in wrong.stderr


def test_need_names_the_extra():
    with pytest.raises(ConfigError, match=r"pip install 'memgraft\[cli\]'"):
        common.need("no_such_package_at_all", "cli")


def test_every_verb_is_registered_and_has_help():
    app = build_app()
    for name, _ in VERBS:
        result = CliRunner().invoke(app, [*name.split(), "--help"])
        assert result.exit_code == 0, result.output


def help_of(name):
    return " ".join(CliRunner().invoke(build_app(), [*name.split(), "--help"]).output.replace("│", " ").split())


def test_help_speaks_of_the_verb_that_it_is_of(monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")
    for name, module in VERBS:
        run = importlib.import_module(module).run
        own = inspect.signature(run, eval_str=True).parameters
        for option in (get_args(parameter.annotation) for parameter in own.values()):
            said = getattr(option[-1], "help", None) or "" if option else ""
            if "--out" in said:
                assert "out" in own, (name, said)
    said = help_of("train")
    assert all(arm in said for arm in ARMS)


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from memgraft.cli.app import build_app; build_app();"
        "print([m for m in ('torch', 'transformers', 'tokenizers', 'pyarrow', 'matplotlib')"
        " if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_missing_typer_is_one_clear_line():
    code = "import sys; sys.modules['typer'] = None\nfrom memgraft.cli import main\nmain()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr == "memgraft: the command line needs typer: run  pip install 'memgraft[cli]'\n"


def test_usage_error_exits_with_2():
    result = CliRunner().invoke(build_app(), ["no-such-verb"])
    assert result.exit_code == 2


def test_every_verb_takes_counts_as_people_write_them(tmp_path):
    from memgraft.cli.app import takes_sizes

    for _, module in VERBS:
        run = importlib.import_module(module).run
        takes_sizes(run)
        for parameter in inspect.signature(run, eval_str=True).parameters.values():
            hint = parameter.annotation
            kinds = get_args(get_args(hint)[0]) or get_args(hint)[:1]
            for option in getattr(hint, "__metadata__", ()):
                parsed = int in kinds or (float in kinds and parameter.name in ("held_out", "hits"))
                assert parsed == (getattr(option, "parser", None) is not None), (module, parameter.name)
    result = CliRunner().invoke(build_app(), ["inspect", str(tmp_path), "--rows", "3x"])
    assert result.exit_code == 2
    assert "expected a number such as 3000" in result.stderr
    result = CliRunner().invoke(build_app(), ["train", "b", "--train", "t", "-o", "e", "--seq-len", "4"])
    assert result.exit_code == 2
    assert "expected at least 8, got 4" in result.stderr


def test_every_verb_bounds_its_threads_by_one_option():
    for name, module in VERBS:
        hint = inspect.signature(importlib.import_module(module).run, eval_str=True).parameters["threads"].annotation
        assert hint == common.ThreadsOption, name


def test_threads_are_bounded_while_a_verb_runs():
    app, seen = typer.Typer(), []

    @app.command()
    @common.verb
    def ask(threads: common.ThreadsOption = None) -> None:
        seen.append((system.num_threads(), os.environ.get("OMP_NUM_THREADS"), os.environ.get("RAYON_NUM_THREADS")))

    before = system.num_threads(), os.environ.get("OMP_NUM_THREADS"), os.environ.get("RAYON_NUM_THREADS")
    assert CliRunner().invoke(app, ["--threads", "1"]).exit_code == 0
    assert CliRunner().invoke(app, []).exit_code == 0
    assert seen == [(1, "1", "1"), before]


def test_shares_are_percentages_in_tables_and_fractions_in_json(capsys):
    facts = {
        "coverage": 0.5634, "fallback_share": 0.25, "shared_with_mined": 1.0, "seconds": 0.25,
        "domains": {"a": {"coverage": 0.125, "hits": {2: 1}}}, "split": {"part": "train", "held_out": 0.05},
    }  # fmt: skip
    common.emit(facts, json=False)
    lines = dict(line.rsplit(None, 1) for line in capsys.readouterr().out.splitlines())
    found = [lines[name] for name in ("coverage", "fallback share", "shared with mined", "seconds")]
    assert found == ["56.34%", "25%", "100%", "0.25"]
    assert (lines["domains a coverage"], lines["split held out"]) == ("12.5%", "5%")
    common.emit(facts, json=True)
    assert json.loads(capsys.readouterr().out)["coverage"] == 0.5634


def test_counts_of_options_have_bounds():
    assert [Count(1)("3k"), Count()("-5"), Count(0, 10)(7)] == [3000, -5, 7]
    for wrong in ("0", "11"):
        with pytest.raises(typer.BadParameter, match="expected 1 to 10"):
            Count(1, 10)(wrong)


def test_one_word_for_the_storage_type():
    assert [common.storage_type("fp8"), common.storage_type("bf16", "int8")] == ["fp8_e4m3", "int8"]
    with pytest.raises(ArgumentError, match="--value-dtype int4: expected one of"):
        common.storage_type("int4")


def test_threads_bound_what_is_asked_of_the_machine():
    from memgraft import system

    system.limit_threads(1)
    try:
        assert system.num_threads() == 1
    finally:
        system.limit_threads(None)


@pytest.mark.parametrize("name", [name for name, _ in VERBS])
def test_help_of_every_verb_has_an_example_that_can_be_typed(name):
    words = shlex.split(EXAMPLES[name])
    assert words[: 1 + len(name.split())] == ["memgraft", *name.split()]
    command = typer.main.get_command(build_app())
    for part in name.split():
        command = command.commands[part]
    assert EXAMPLES[name] in command.epilog
    # Reads the line as the command does, without running it.
    command.make_context(name, words[1 + len(name.split()) :])


def test_shares_are_read_as_people_write_them():
    assert [Share()("5%"), Share()("0.05"), Share()(0.25)] == [0.05, 0.05, 0.25]
    with pytest.raises(typer.BadParameter, match=r"such as 0\.05 or 5%"):
        Share()("five")
