"""Where a process runs: what some file systems and containers do, each tried with a shim."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bank_cases import child_environment
from memgraft import KeySet, system
from memgraft.errors import StorageError


def refusing(function, number, only=None):
    """``function`` of `os` that fails with an errno, for paths or descriptors that ``only`` accepts."""
    original = getattr(os, function)

    def refuse(target, *args, **options):
        if only is None or only(target):
            raise OSError(number, os.strerror(number))
        return original(target, *args, **options)

    return refuse


def is_folder(target):
    return os.path.isdir(f"/proc/self/fd/{target}" if isinstance(target, int) else target)


@pytest.mark.parametrize(
    ("function", "number"),
    [
        ("fsync", errno.EINVAL),
        ("fsync", errno.ENOSYS),
        ("fsync", errno.EACCES),
        ("open", errno.EACCES),
        ("fsync", errno.EBADF),
    ],
)
def test_folders_that_cannot_be_synced_are_no_reason_to_fail(tmp_path, monkeypatch, function, number):
    monkeypatch.setattr(os, function, refusing(function, number, is_folder))
    with system.written_beside(tmp_path / "a") as beside:
        beside.write_bytes(b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_a_device_that_fails_is_an_error(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", refusing("fsync", errno.EIO))
    with (
        pytest.raises(StorageError, match=r"a: cannot be written: .*choose another place"),
        system.written_beside(path) as beside,
    ):
        beside.write_bytes(b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def fail_half_way(path):
    with system.written_beside(path) as beside:
        beside.write_bytes(b"half")
        raise KeyError


def test_nothing_is_left_of_a_write_that_fails(tmp_path):
    with pytest.raises(KeyError):
        fail_half_way(tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_writing_is_tried_and_not_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    system.check_writable(tmp_path)
    monkeypatch.setattr(os, "access", lambda *_, **__: True)
    with pytest.raises(StorageError, match="choose another"):
        system.check_writable(tmp_path / "not there")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def cgroups(tmp_path, monkeypatch):
    """Puts a tree of control groups in the place of the system's: cgroups(name of ours, file=text)."""

    def put(ours, **files):
        for name, text in files.items():
            file = tmp_path / name.replace("__", "/").replace("_max", ".max")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        read_text = Path.read_text
        monkeypatch.setattr(
            Path,
            "read_text",
            lambda path, **options: ours if str(path) == "/proc/self/cgroup" else read_text(path, **options),
        )
        monkeypatch.setattr(system, "CGROUPS", tmp_path)
        system.processor_quota.cache_clear()
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
        monkeypatch.setattr(os, "process_cpu_count", lambda: 64, raising=False)

    yield put
    system.processor_quota.cache_clear()


def test_threads_are_those_that_the_process_may_use(cgroups):
    cgroups("0::/a/b\n", a__b__cpu_max="max 100000", a__cpu_max="350000 100000")
    assert system.num_threads() == 3
    assert system.num_threads(most=2) == 2


def test_a_group_without_a_limit(cgroups):
    cgroups("0::/\n")
    assert system.num_threads() == 8


def test_less_than_one_processor_is_one_thread(cgroups):
    cgroups("0::/a\n", a__cpu_max="20000 100000")
    assert system.num_threads() == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "surroundings", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]
)
def test_a_name_that_stdout_cannot_print_ends_no_run(tmp_path, surroundings):
    # Longer than the table below it is wide, and with what rich takes for markup.
    keys = tmp_path / f"{'long-' * 20}[red]clés-ключи.mgk"
    KeySet.from_keys([(1, 2), (3,)], vocab_size=10).save(keys)
    for verb in (["inspect", str(keys)], ["build", str(keys), "--out", str(tmp_path / "индекс.mgi")]):
        done = subprocess.run(
            [sys.executable, "-m", "memgraft.cli", *verb],
            capture_output=True,
            timeout=120,
            env={**child_environment(), **surroundings},
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        assert b"Traceback" not in done.stderr
        assert done.stdout.isascii()
        # How a letter that cannot be printed is written depends on the surroundings, that the name is whole does not.
        (line,) = [
            line for line in done.stdout.splitlines() if (b"[red]cl" in line or verb[0] == "build") and b".mg" in line
        ][:1]
        assert line.endswith((b".mgk", b".mgi"))


def test_second_copies_of_a_model_are_not_fetched(monkeypatch, tmp_path):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    from huggingface_hub.utils import filter_repo_objects

    from memgraft.harvesting import donor_folder

    files = ["config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.json"]
    files += ["tokenizer.model", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"]
    copies = ["original/consolidated.00.pth", "original/params.json", "original/tokenizer.model", "model.gguf"]
    copies += ["original/model.safetensors", "mistral/consolidated.00.safetensors", "consolidated.safetensors"]
    copies += ["consolidated.safetensors.index.json", "pytorch_model.bin", "onnx/model.onnx", "onnx/config.json"]
    fetched = []

    def snapshot(name, allow_patterns, ignore_patterns):
        named = {"allow_patterns": allow_patterns, "ignore_patterns": ignore_patterns}
        fetched.extend(filter_repo_objects([*files, *copies], **named))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert donor_folder("somebody/model") == tmp_path
    assert sorted(fetched) == sorted(files)


def test_a_temporary_folder_is_made_and_goes(tmp_path):
    with system.temporary_folder(tmp_path / "new" / "place") as folder:
        assert Path(folder).parent == tmp_path / "new" / "place"
    assert not any((tmp_path / "new" / "place").iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="name another with temporary="):
        system.made_folder(tmp_path / "file" / "under")
