"""What a folder of text may look like besides plain files."""

import gzip
import json
import os
import signal
import threading

import pytest

from memgraft.corpus import Corpus, is_text, tokenize_folder
from memgraft.corpus.documents import Cutting, left_out, read_documents, text_files
from memgraft.corpus.text import token_array
from memgraft.errors import ArgumentError, CorpusError
from memgraft.system import interruptible

tokenizers = pytest.importorskip("tokenizers")


@pytest.fixture
def tokenizer(tmp_path):
    (tmp_path / "tokenizer").mkdir()
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    return tmp_path / "tokenizer"


def test_byte_order_marks_go_and_line_ends_stay(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "three"}\r\n{"text": "\xef\xbb\xbffour"}\r\n')
    assert list(read_documents(tmp_path)) == ["one\r\ntwo", "three", "\ufefffour"]


def test_suffixes_of_any_case(tmp_path):
    (tmp_path / "A.TXT").write_text("one")
    (tmp_path / "b.JSONL").write_text('{"text": "two"}')
    assert is_text(tmp_path)
    assert is_text(tmp_path / "A.TXT")
    assert list(read_documents(tmp_path)) == ["one", "two"]


def test_line_separators_inside_a_document(tmp_path):
    text = "para\u2028para\u2029next\x85and\x0bmore"
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert list(read_documents(tmp_path)) == [text]


def test_half_a_surrogate_pair_is_no_text(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n{"text": "\\ud83d"}\n')
    with pytest.raises(CorpusError, match=r"a\.jsonl: line 2: .*half of a surrogate pair \('.ud83d'\)"):
        list(read_documents(tmp_path))


def test_links_are_followed_once(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.txt").write_text("two")
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "a.txt").write_text("one")
    os.symlink(tmp_path / "elsewhere", folder / "link")
    os.symlink(tmp_path / "elsewhere", folder / "same")
    os.symlink(folder, folder / "loop")
    assert [path.name for path in text_files(folder)] == ["a.txt", "b.txt"]


def test_a_link_to_nothing_is_named(tmp_path, tokenizer):
    folder = tmp_path / "text"
    folder.mkdir()
    os.symlink(tmp_path / "gone.txt", folder / "a.txt")
    with pytest.raises(OSError, match=r"a\.txt: No such file"):
        Corpus.open(folder, tokenizer=tokenizer)


def test_text_beside_tokens_is_ambiguous(tmp_path, tokenizer):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "tokens.bin").write_bytes(b"\1\0\2\0")
    (folder / "README.md").write_text("what this is")
    assert Corpus.open(folder, tokenizer=tokenizer, eos_id=2).format == "nanogpt"
    (folder / "input.txt").write_text("a b")
    with pytest.raises(CorpusError, match=r"data: expected token files or text .*found both; name the files"):
        Corpus.open(folder, tokenizer=tokenizer, eos_id=2)
    assert Corpus.open(folder / "input.txt", tokenizer=tokenizer).tokens().tolist() == [1, 2]
    assert Corpus.open(folder, tokenizer=tokenizer, eos_id=2, format="nanogpt").tokens().tolist() == [1, 2]


def test_a_folder_of_neither(tmp_path, tokenizer):
    with pytest.raises(CorpusError, match="found none of them"):
        Corpus.open(tmp_path / "tokenizer", tokenizer=tokenizer)


def test_what_was_opened_is_named_and_not_the_temporary_file(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("a b a")
    corpus = Corpus.open(tmp_path / "a.txt", tokenizer=tokenizer)
    assert (corpus.format, corpus.paths) == ("text", [tmp_path / "a.txt"])
    assert "a.txt, text, 3 tokens" in repr(corpus)


PACK = {".gz": gzip.compress, ".zst": lambda data: pytest.importorskip("pyarrow").compress(data, "zstd", asbytes=True)}


@pytest.mark.parametrize("packed", PACK)
def test_packed_text_is_unpacked(tmp_path, packed):
    (tmp_path / f"a.txt{packed}").write_bytes(PACK[packed](b"first\n\ndocument"))
    (tmp_path / f"b.jsonl{packed}").write_bytes(PACK[packed](b'{"text": "second"}\n\n{"text": "third"}\n'))
    (tmp_path / f"c.json{packed}").write_bytes(PACK[packed](b'{"text": "fourth"}'))
    assert list(read_documents(tmp_path)) == ["first\n\ndocument", "second", "third", "fourth"]
    whole = PACK[packed](b'{"text": "a long line of text"}\n' * 2000)
    (tmp_path / f"d.jsonl{packed}").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorpusError, match=f"d.jsonl{packed}: expected a whole compressed file"):
        list(read_documents(tmp_path))


def test_separators_fields_and_columns(tmp_path):
    pa = pytest.importorskip("pyarrow")
    (tmp_path / "a.txt").write_text("one<|end|>two<|end|>three")
    (tmp_path / "b.jsonl").write_text('{"content": "four"}\n')
    pytest.importorskip("pyarrow.parquet").write_table(pa.table({"body": ["five", "six"]}), tmp_path / "c.parquet")
    cutting = Cutting(separator="<|end|>", field="content", column="body")
    assert list(read_documents(tmp_path, cutting=cutting)) == ["one", "two", "three", "four", "five", "six"]
    assert [file.name for file in left_out(tmp_path)] == ["c.parquet"]
    assert left_out(tmp_path, cutting.suffixes) == []
    for wrong, match in (
        (Cutting(field="content", column="text"), "column 'text' of text, found body"),
        (Cutting(field="text"), 'a string "text"'),
    ):
        with pytest.raises(CorpusError, match=match):
            list(read_documents(tmp_path, cutting=wrong))
    with pytest.raises(ArgumentError, match="separator"):
        Cutting(separator="")


def test_one_giant_document_of_many_is_named(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr("memgraft.corpus.text.GIANT_CHARACTERS", 20)
    special = "<|end|>"
    made = tokenizers.Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    made.add_special_tokens([special])
    made.save(str(tokenizer / "tokenizer.json"))
    (tmp_path / "all.txt").write_text(f"a b{special}a{special}b a{special}" * 3)
    with pytest.warns(UserWarning, match=r"all\.txt: one document .* 9 times.*give separator="):
        tokenize_folder(tmp_path / "all.txt", tokenizer, tmp_path / "joined")
    cut = tokenize_folder(tmp_path / "all.txt", tokenizer, tmp_path / "cut", cutting=Cutting(separator=special))
    assert Corpus.open(cut).num_documents == 9


@pytest.mark.parametrize("size", [0, 1, 3, 6, 7])
@pytest.mark.parametrize("eos", [None, 9])
def test_ids_become_an_array_a_slice_at_a_time(monkeypatch, size, eos):
    monkeypatch.setattr("memgraft.corpus.text.SLICE", 3)
    wanted = [*range(size), *([9] if size and eos is not None else [])]
    found = token_array(list(range(size)), eos)
    assert (found.dtype, found.tolist()) == ("uint32", wanted)


def test_interrupts_are_answered_while_native_code_runs():
    release = threading.Event()
    # To the process, as a terminal does it: raised in the timer's own thread it would not wake the waiting one.
    threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        interruptible(lambda: release.wait(60))
    release.set()
    assert interruptible(lambda: 5) == 5
    with pytest.raises(ZeroDivisionError):
        interruptible(lambda: 1 // 0)
