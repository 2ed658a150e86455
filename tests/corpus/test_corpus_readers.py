import gzip
import os
import re
import struct

import numpy as np
import pytest

import corpus_layouts as layouts
from memgraft.corpus import Corpus
from memgraft.errors import ArgumentError, CorpusError, StorageError

EOS = 50256
DOCUMENTS = [[5, 7, 9, EOS], [5, 7, EOS], [40000, 1, 2, 3, EOS], [EOS]]
EOS_FIRST = [[EOS, 5, 7, 9], [EOS, 5, 7], [EOS, 40000, 1], [EOS]]

CASES = {
    "megatron u16": lambda p: (layouts.write_megatron(p / "c", DOCUMENTS), {}),
    "megatron i32, 2 sequences a document": lambda p: (layouts.write_megatron(p / "c", DOCUMENTS, "int32", 2), {}),
    "megatron i64, modes": lambda p: (layouts.write_megatron(p / "c", DOCUMENTS, "int64", modes=True), {}),
    "megatron prefix": lambda p: (layouts.write_megatron(p / "c", DOCUMENTS)[:-4], {}),
    "megatron idx": lambda p: (layouts.write_megatron(p / "c", DOCUMENTS)[:-4] + ".idx", {}),
    "datatrove u16": lambda p: (layouts.write_datatrove(p / "c.ds", DOCUMENTS), {}),
    "datatrove u32": lambda p: (layouts.write_datatrove(p / "c.ds", DOCUMENTS, "I"), {}),
    "nanogpt": lambda p: (layouts.write_nanogpt(p / "c.bin", DOCUMENTS), {"eos_id": EOS}),
    "nanogpt u32": lambda p: (
        layouts.write_nanogpt(p / "c.bin", DOCUMENTS, np.uint32),
        {"eos_id": EOS, "dtype": np.uint32},
    ),
    "npy u16": lambda p: (layouts.write_npy(p / "c.npy", DOCUMENTS), {"eos_id": EOS}),
    "npy i64": lambda p: (layouts.write_npy(p / "c.npy", DOCUMENTS, np.int64), {"eos_id": EOS}),
    "olmo": lambda p: (layouts.write_olmo(p / "c.npy", DOCUMENTS), {"eos_id": EOS, "dtype": "uint32"}),
    "dolma u16": lambda p: (layouts.write_dolma(p / "c.npy", DOCUMENTS), {}),
    "dolma u32, a name with quotes and a line break": lambda p: (
        layouts.write_dolma(p / "c.npy", DOCUMENTS, np.uint32, 'a "name",\nof two lines'),
        {"dtype": "uint32"},
    ),
    "npy with boundaries": lambda p: (
        layouts.write_npy(layouts.write_dolma(p / "c.npy", DOCUMENTS), DOCUMENTS, np.int64),
        {},
    ),
    "raw": lambda p: (
        layouts.write_nanogpt(p / "c.tokens", DOCUMENTS),
        {"eos_id": EOS, "dtype": "uint16", "format": "raw"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_layout_gives_the_same_documents(case, tmp_path):
    path, options = CASES[case](tmp_path)
    corpus = Corpus.open(path, **options)
    assert corpus.num_documents == len(DOCUMENTS)
    assert [corpus.document(i).tolist() for i in range(4)] == DOCUMENTS
    assert corpus.document_starts.tolist() == [0, 4, 7, 12, 13]
    assert corpus.document_starts.dtype == np.uint64
    assert corpus.tokens().tolist() == layouts.flatten(DOCUMENTS)
    assert corpus.tokens(3, 9).tolist() == layouts.flatten(DOCUMENTS)[3:9]
    assert corpus.tokens().dtype == np.uint32
    reference = Corpus.open(layouts.write_datatrove(tmp_path / "reference.ds", DOCUMENTS))
    assert corpus.fingerprint == reference.fingerprint


def test_every_format_has_a_case(tmp_path):
    path = layouts.write_datatrove(tmp_path / "c.ds", DOCUMENTS)
    with pytest.raises(ArgumentError, match="expected one of") as refused:
        Corpus.open(path, format="unheard-of")
    known = re.search(r"expected one of (.*), got", str(refused.value))[1].split(", ")
    tried = {"llmc"}  # its delimiter opens a document: the test below
    for number, case in enumerate(CASES.values()):
        (folder := tmp_path / str(number)).mkdir()
        path, options = case(folder)
        tried.add(Corpus.open(path, **options).format)
    assert set(known) == tried


@pytest.mark.parametrize(("magic", "version", "dtype"), [(20240520, 1, np.uint16), (20240801, 7, np.uint32)])
def test_llmc_delimiter_opens_a_document(magic, version, dtype, tmp_path):
    path = layouts.write_llmc(tmp_path / "c.bin", EOS_FIRST, magic, version, dtype)
    corpus = Corpus.open(path, eos_id=EOS)
    assert corpus.format == "llmc"
    assert corpus.dtype == dtype
    assert [corpus.document(i).tolist() for i in range(corpus.num_documents)] == EOS_FIRST


def test_shards_follow_one_another(tmp_path):
    layouts.write_megatron(tmp_path / "b", DOCUMENTS[2:])
    layouts.write_megatron(tmp_path / "a", DOCUMENTS[:2])
    corpus = Corpus.open(tmp_path)
    assert [corpus.document(i).tolist() for i in range(4)] == DOCUMENTS
    assert [path.name for path in corpus.paths] == ["a.bin", "b.bin"]
    swapped = Corpus.open([tmp_path / "b", tmp_path / "a"])
    assert swapped.document(0).tolist() == DOCUMENTS[2]
    assert swapped.fingerprint != corpus.fingerprint


def test_eos_cuts_inside_indexed_documents_too(tmp_path):
    path = layouts.write_megatron(tmp_path / "packed", [layouts.flatten(DOCUMENTS), [8, 8]])
    assert Corpus.open(path).num_documents == 2
    corpus = Corpus.open(path, eos_id=EOS)
    assert [corpus.document(i).tolist() for i in range(5)] == [*DOCUMENTS, [8, 8]]


def test_file_as_document(tmp_path):
    path = layouts.write_nanogpt(tmp_path / "c.bin", DOCUMENTS)
    assert Corpus.open(path, documents="file").num_documents == 1


def test_split_views(tmp_path):
    documents = [[n, n + 1, EOS] for n in range(50)]
    corpus = Corpus.open(layouts.write_datatrove(tmp_path / "c.ds", documents))
    train, held = corpus.split(held_out=0.1, seed=3)
    assert (train.num_documents, held.num_documents) == (45, 5)
    seen = [held.document(i).tolist() for i in range(5)] + [train.document(i).tolist() for i in range(45)]
    assert sorted(seen) == documents
    assert train.split_facts == {
        "part": "train", "held_out": 0.1, "seed": 3, "of": corpus.fingerprint, "num_documents": 50, "num_held_out": 5,
    }  # fmt: skip
    assert held.split_facts["part"] == "held_out"
    assert corpus.split_facts is None
    other, _ = corpus.split(held_out=0.1, seed=4)
    assert other.fingerprint != train.fingerprint
    with pytest.raises(ArgumentError, match="held_out: expected a share"):
        corpus.split(held_out=1.0)
    one = Corpus.open(layouts.write_datatrove(tmp_path / "one.ds", [[1, 2]]))
    with pytest.raises(CorpusError, match="at least 2 documents"):
        one.split(held_out=0.5)


def truncated(path, by=1):
    os.truncate(path, os.path.getsize(path) - by)


def patched(path, at, data):
    with open(path, "r+b") as stream:
        stream.seek(at)
        stream.write(data)


def megatron(tmp_path, **kwargs):
    return layouts.write_megatron(tmp_path / "c", DOCUMENTS, **kwargs)


def bad_idx(at, data):
    def make(tmp_path):
        path = megatron(tmp_path)
        patched(path[:-4] + ".idx", at, data)
        return path

    return make


def bad_truncated_idx(tmp_path):
    path = megatron(tmp_path)
    truncated(path[:-4] + ".idx", 3)
    return path


def bad_truncated_bin(tmp_path):
    path = megatron(tmp_path)
    truncated(path, 2)
    return path


def bad_longer_bin(tmp_path):
    path = megatron(tmp_path)
    with open(path, "ab") as stream:
        stream.write(b"\0\0")
    return path


def bad_datatrove(change):
    def make(tmp_path):
        path = layouts.write_datatrove(tmp_path / "c.ds", DOCUMENTS)
        change(path)
        return path

    return make


def bad_npy(array, cut=0):
    def make(tmp_path):
        np.save(tmp_path / "c.npy", array)
        if cut:
            truncated(tmp_path / "c.npy", cut)
        return tmp_path / "c.npy"

    return make


def bad_llmc(change=None, **kwargs):
    def make(tmp_path):
        path = layouts.write_llmc(tmp_path / "c.bin", DOCUMENTS, **kwargs)
        if change:
            change(path)
        return path

    return make


def bad_dolma(rows=None, data=None, tokens=None):
    """A dolma pair with other rows, other bytes, or other tokens."""

    def make(tmp_path):
        path = layouts.write_dolma(tmp_path / "c.npy", DOCUMENTS)
        if rows is not None:
            with gzip.open(tmp_path / "c.csv.gz", "wt") as stream:
                stream.write(rows)
        if data is not None:
            (tmp_path / "c.csv.gz").write_bytes(data)
        if tokens is not None:
            layouts.write_olmo(path, tokens, np.uint16)
        return path

    return make


def written(name, data):
    def make(tmp_path):
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return make


def u32_as_bin(tmp_path):
    return layouts.write_nanogpt(tmp_path / "c.bin", DOCUMENTS * 20, np.uint32)


def orphan_idx(tmp_path):
    path = megatron(tmp_path)
    os.remove(path)
    return path[:-4] + ".idx"


# idx: 9 magic, 8 version, 1 code, 8 sequences, 8 entries; 4 lengths at 34, 4 pointers at 50, 5 entries at 82.
BAD = {
    "idx magic": (bad_idx(0, b"XX"), {}, "expected a Megatron index"),
    "idx version": (bad_idx(9, b"\2"), {}, "version 1, found 2"),
    "idx float tokens": (bad_idx(17, b"\7"), {}, "dtype code .*found 7"),
    "idx counts": (bad_idx(18, struct.pack("<Q", 2**61)), {}, "to fill the file"),
    "idx sequence past the end": (bad_idx(34, struct.pack("<i", 400)), {}, "sequence 0 to lie inside"),
    "idx negative length": (bad_idx(38, struct.pack("<i", -1)), {}, "sequence 1 to lie inside"),
    "idx negative pointer": (bad_idx(50, struct.pack("<q", -2)), {}, "byte offset -2"),
    "idx odd pointer": (bad_idx(50, struct.pack("<q", 1)), {}, "byte offset 1"),
    "idx huge pointer": (bad_idx(50, struct.pack("<q", 2**62)), {}, "to lie inside"),
    "idx documents fall": (bad_idx(98, struct.pack("<q", 0)), {}, "found 0 at entry 2"),
    "idx documents start late": (bad_idx(82, struct.pack("<q", 1)), {}, "found 1 at entry 0"),
    "idx document past the end": (bad_idx(114, struct.pack("<q", 5)), {}, "found 5 at entry 4"),
    "idx truncated": (bad_truncated_idx, {}, "truncated or damaged"),
    "bin truncated": (bad_truncated_bin, {}, "do not belong together"),
    "bin longer": (bad_longer_bin, {}, "do not belong together"),
    "bin missing": (orphan_idx, {}, "No such file"),
    "megatron dtype": (megatron, {"dtype": "int32"}, "expected int32 as dtype= says, found uint16"),
    "ds odd index": (bad_datatrove(lambda p: truncated(f"{p}.index", 3)), {}, "u64 document ends"),
    "ds ends fall": (
        bad_datatrove(lambda p: patched(f"{p}.index", 8, struct.pack("<Q", 2))),
        {},
        "2 after 4 at document 1",
    ),
    "ds past the end": (
        bad_datatrove(lambda p: patched(f"{p}.index", 24, struct.pack("<Q", 10**6))),
        {},
        "at document 3",
    ),
    "ds truncated": (bad_datatrove(lambda p: truncated(p, 2)), {}, "13 tokens of 2 or 4 bytes .*found 24"),
    "ds without index": (bad_datatrove(lambda p: os.remove(f"{p}.index")), {}, 'format="raw"'),
    "ds dtype": (bad_datatrove(lambda p: None), {"dtype": "uint32"}, "found uint16"),
    "dolma gap": (bad_dolma("0,4,a\n5,13,b\n"), {}, r'row 2 to be "4,<end>,…".*found "5,13,b"'),
    "dolma falls": (bad_dolma("0,4,a\n4,3,b\n"), {}, "row 2"),
    "dolma header": (bad_dolma("start,end,id\n0,13,a\n"), {}, "row 1"),
    "dolma one field": (bad_dolma("0\n"), {}, "row 1"),
    "dolma huge": (bad_dolma(f"0,{2**64},a\n"), {}, "row 1"),
    "dolma without rows": (bad_dolma(""), {}, "found none"),
    "dolma no gzip": (bad_dolma(data=b"0,13,a\n"), {}, "expected gzip"),
    "dolma gzip cut": (bad_dolma(data=gzip.compress(b"0,13,a\n")[:-9]), {}, "expected gzip"),
    "dolma of other tokens": (bad_dolma(tokens=[[1, 2, 3]]), {}, "13 tokens of 2 or 4 bytes .*found 6 bytes"),
    "dolma too short": (bad_dolma("0,9,a\n"), {"dtype": "uint16"}, "9 tokens .* in 1 documents, found 13"),
    "npy 2-D": (bad_npy(np.zeros((2, 3), np.uint16)), {"eos_id": 0}, r"one dimension, found shape \[2, 3\]"),
    "npy scalar": (bad_npy(np.uint16(3)), {"eos_id": 0}, "one dimension"),
    "npy float": (bad_npy(np.zeros(3)), {"eos_id": 0}, 'found descr "<f8"'),
    "npy big-endian": (bad_npy(np.zeros(3, ">u2")), {"eos_id": 0}, 'found descr ">u2"'),
    "npy empty": (bad_npy(np.zeros(0, np.uint16)), {"eos_id": 0}, "length 0"),
    "npy truncated": (bad_npy(np.zeros(9, np.uint16), 1), {"eos_id": 0}, "expected 9 uint16 tokens .*found 17 bytes"),
    "npy header cut": (written("c.npy", b"\x93NUMPY\1\0\x76\0{'de"), {"eos_id": 0}, "too short"),
    "npy version": (written("c.npy", b"\x93NUMPY\x09\0\x76\0{'de"), {"eos_id": 0}, "version 9"),
    "npy negative": (bad_npy(np.array([3, -4, 5])), {"eos_id": 0}, "found -4 at position 1"),
    "npy dtype": (bad_npy(np.zeros(3, np.uint16)), {"eos_id": 0, "dtype": "uint32"}, "found uint16 in the header"),
    "npy headerless": (written("c.npy", b"\1\0\2\0"), {"eos_id": 0}, "give dtype="),
    "raw without dtype": (written("c.npy", b"\1\0\2\0"), {"eos_id": 0, "format": "raw"}, "give dtype="),
    "llmc truncated": (bad_llmc(lambda p: truncated(p, 2)), {"eos_id": 0}, "13 uint16 tokens"),
    "llmc version": (bad_llmc(version=2), {"eos_id": 0}, "version 1 .*found 2"),
    "llmc evaluation": (bad_llmc(magic=20240522), {"eos_id": 0}, "multiple-choice"),
    "llmc forced": (written("c.bin", b"\1\0" * 600), {"eos_id": 0, "format": "llmc"}, "llm.c magic"),
    "bin odd": (written("c.bin", b"\1\0\2"), {"eos_id": 0}, "multiple of 2 bytes"),
    "bin empty": (written("c.bin", b""), {"eos_id": 0}, "empty file"),
    "bin u32 unannounced": (u32_as_bin, {"eos_id": EOS}, 'dtype="uint32"'),
    "bin u16 read as u32": (
        written("c.bin", b"\1\xf0" * 600),
        {"eos_id": 0, "dtype": "uint32"},
        "found 4026658817 at position 0",
    ),
    "no boundaries": (written("c.bin", b"\1\0\2\0"), {}, "give eos_id="),
    "unknown suffix": (written("c.abc", b"PK"), {"eos_id": 0}, "give format="),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_typed_errors(case, tmp_path):
    make, options, message = BAD[case]
    path = make(tmp_path)
    with pytest.raises((CorpusError, StorageError), match=message) as caught:
        Corpus.open(path, **options)
    assert str(tmp_path) in str(caught.value)


def test_folder_of_several_formats_is_ambiguous(tmp_path):
    layouts.write_nanogpt(tmp_path / "a.bin", DOCUMENTS)
    layouts.write_npy(tmp_path / "b.npy", DOCUMENTS)
    with pytest.raises(CorpusError, match=r"a\.bin and .*b\.npy; give format="):
        Corpus.open(tmp_path, eos_id=EOS)
    assert Corpus.open(tmp_path, eos_id=EOS, format="numpy").num_documents == 4


def test_shards_of_several_kinds(tmp_path):
    layouts.write_nanogpt(tmp_path / "a.bin", DOCUMENTS)
    layouts.write_llmc(tmp_path / "b.bin", DOCUMENTS)
    with pytest.raises(CorpusError, match=r"b\.bin: expected the format of the first file, nanogpt, found llmc"):
        Corpus.open(tmp_path, eos_id=EOS)
    layouts.write_megatron(tmp_path / "m", DOCUMENTS)
    layouts.write_megatron(tmp_path / "n", DOCUMENTS, "int32")
    with pytest.raises(CorpusError, match=r"expected uint16 tokens as in .*found int32"):
        Corpus.open([tmp_path / "m", tmp_path / "n"])


def test_empty_folder_and_missing_path(tmp_path):
    with pytest.raises(CorpusError, match=r"expected token files .*found none"):
        Corpus.open(tmp_path)
    with pytest.raises(CorpusError, match=r"nowhere\.bin: expected a token file, .*found nothing there"):
        Corpus.open(tmp_path / "nowhere.bin")


def test_arguments(tmp_path):
    path = megatron(tmp_path)
    corpus = Corpus.open(path)
    with pytest.raises(ArgumentError, match="start <= stop <= 13"):
        corpus.tokens(0, 14)
    with pytest.raises(ArgumentError, match="got -1"):
        corpus.tokens(-1, 3)
    with pytest.raises(ArgumentError, match="expected 0 to 3, got 4"):
        corpus.document(4)
    with pytest.raises(ArgumentError, match="format: expected one of"):
        Corpus.open(path, format="webdataset")
    with pytest.raises(ArgumentError, match="dtype: expected one of"):
        Corpus.open(path, dtype="float32")
    with pytest.raises(ArgumentError, match="eos_id"):
        Corpus.open(path, eos_id=1 << 20)
    with pytest.raises(ArgumentError, match="documents"):
        Corpus.open(path, documents="line")
    with pytest.raises(ArgumentError, match="at least one"):
        Corpus.open([])
