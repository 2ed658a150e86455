"""Files of other tools and of several splits are refused by name, whatever they are called."""

import gzip
import io
import json
import pickle
import struct
import tarfile
import zipfile

import numpy as np
import pytest

from memgraft.corpus import Corpus
from memgraft.corpus.documents import read_documents
from memgraft.corpus.foreign import split_of
from memgraft.errors import CorpusError

TOKENS = np.array([100, 200, 300, 0] * 64, np.uint16)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.bin", "train"),
        ("val.bin", "validation"),
        ("fineweb_train_000001.bin", "train"),
        ("fineweb_val_000000.bin", "validation"),
        ("my-corpus.valid_text_document.bin", "validation"),
        ("pile_test_text_document.bin", "test"),
        ("trainTokens2.npy", "train"),
        ("DEV.ds", "validation"),
        ("held_out_3.npy", "validation"),
        ("traindata.bin", "train"),
        ("train-00000-of-00008.parquet", "train"),
        ("train_sft-00000-of-00001-0a1b2c.parquet", "train_sft"),
        ("development.bin", "validation"),
        ("tests_2.bin", "test"),
        ("tokens_unseen.bin", "validation"),
        ("testingdata.bin", "test"),
        ("TrainingDataset1.npy", "train"),
        ("part-1.npy", None),
        ("latest_contest_values.bin", None),
        ("00000_shuffled.ds", None),
    ],
)
def test_names_of_splits(name, split):
    assert split_of(name) == split


def save_numpy(path):
    np.save(path, TOKENS)


def save_megatron(path):
    path.write_bytes(TOKENS.tobytes())
    index = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, 1, 2) + struct.pack("<iqqq", len(TOKENS), 0, 0, 1)
    path.with_suffix(".idx").write_bytes(index)


def save_datatrove(path):
    path.write_bytes(TOKENS.tobytes())
    path.with_name(path.name + ".index").write_bytes(struct.pack("<Q", len(TOKENS)))


def save_raw(path):
    TOKENS.tofile(path)


@pytest.mark.parametrize(
    ("names", "save"),
    [
        (("train.bin", "val.bin"), save_raw),
        (("fineweb_train_000001.bin", "fineweb_val_000000.bin"), save_raw),
        (("tokens.bin", "tokens_val.bin"), save_raw),
        (("a_train_text_document.bin", "a_valid_text_document.bin"), save_megatron),
        (("x.train.npy", "x.dev.npy"), save_numpy),
        (("00000_train.ds", "00000_test.ds"), save_datatrove),
    ],
)
def test_splits_in_one_folder(tmp_path, names, save):
    for name in names:
        save(tmp_path / name)
    options = {} if save in (save_megatron, save_datatrove) else {"eos_id": 0}
    with pytest.raises(CorpusError, match=f"one split, found .*{names[-1]}.*such as .*{names[0]}"):
        Corpus.open(tmp_path, **options)
    assert Corpus.open([tmp_path / name for name in names], **options).num_tokens == 2 * len(TOKENS), (
        "asked for by name"
    )
    (tmp_path / names[-1]).rename(tmp_path / names[0].replace("train", "train_1").replace("tokens.", "tokens_1."))
    if save in (save_raw, save_numpy):
        assert Corpus.open(tmp_path, **options).num_tokens == 2 * len(TOKENS), "two shards of one split"


def test_splits_of_text(tmp_path):
    for name in ("train.txt", "valid.txt", "test.txt"):
        (tmp_path / name).write_text("some words")
    with pytest.raises(CorpusError, match=r"one split, found .*train\.txt"):
        Corpus.open(tmp_path, tokenizer=tmp_path)
    (tmp_path / "train.txt").rename(tmp_path / "words.txt")
    with pytest.raises(CorpusError, match=r"tokenizer\.json"):
        Corpus.open(tmp_path, tokenizer=tmp_path)  # a page about tests is no split


@pytest.mark.parametrize(
    "names",
    [
        ("train-00000-of-00002.jsonl", "validation-00000-of-00001.jsonl"),
        ("train-00000-of-00002.txt", "test-00000-of-00001.txt"),
        ("c4-train.00000-of-01024.json.gz", "c4-validation.00000-of-00008.json.gz"),
        ("news_train_0.jsonl", "news_dev_0.jsonl"),
        ("dump.train.jsonl.gz", "dump.heldout.jsonl.gz"),
        ("train.jsonl", "eval.jsonl"),
        ("train_01.txt", "tests_01.txt"),
    ],
)
def test_splits_of_text_by_many_names(tmp_path, names):
    for name in names:
        (tmp_path / name).write_text('{"text": "some words"}\n')
    with pytest.raises(CorpusError, match=f"the text of one split, found .*{names[0]}"):
        list(read_documents(tmp_path))
    for name in ("how_to_train.txt", "how_to_test.txt", "on_training-1.jsonl", "a_testing_ground.jsonl"):
        (tmp_path / "pages").mkdir(exist_ok=True)
        (tmp_path / "pages" / name).write_text('{"text": "some words"}\n')
    assert len(list(read_documents(tmp_path / "pages"))) == 4


def litdata(folder):
    body = TOKENS.tobytes()
    (folder / "chunk-0-0.bin").write_bytes(np.array([1, 12, 12 + len(body)], np.uint32).tobytes() + body)
    (folder / "index.json").write_text(json.dumps({"chunks": [{"filename": "chunk-0-0.bin"}], "config": {}}))
    return folder


def mosaic(folder):
    (folder / "shard.00000.mds").write_bytes(b"\2\0\0\0" + TOKENS.tobytes())
    shard = {"format": "mds", "raw_data": {"basename": "shard.00000.mds"}}
    (folder / "index.json").write_text(json.dumps({"version": 2, "shards": [shard]}))
    return folder


def written(name, data):
    def make(folder):
        (folder / name).write_bytes(data)
        return folder / name

    return make


def archive(kind):
    buffer = io.BytesIO()
    if kind == "tar":
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            member = tarfile.TarInfo("0.tokens")
            member.size = len(TOKENS.tobytes())
            tar.addfile(member, io.BytesIO(TOKENS.tobytes()))
    else:
        np.savez(buffer, tokens=TOKENS)
        assert zipfile.is_zipfile(buffer)
    return buffer.getvalue()


TFRECORD = bytes.fromhex("030000000000000064eb0c3061626300000000") + bytes(64)
"""A TFRecord of the record b"abc", as TensorFlow writes it."""
HEADER = json.dumps({"t": {"dtype": "U16", "shape": [256], "data_offsets": [0, 512]}}).encode()
OTHERS = {
    "litdata": (litdata, "litdata's chunks"),
    "a chunk of litdata": (lambda folder: litdata(folder) / "chunk-0-0.bin", "litdata's chunks"),
    "MDS": (mosaic, "MDS"),
    "gzip": (written("c.bin", gzip.compress(TOKENS.tobytes())), "gzip; unpack"),
    "gzip by name": (written("c.npy.gz", gzip.compress(TOKENS.tobytes())), "gzip; unpack"),
    "Zstandard": (written("c.bin", b"\x28\xb5\x2f\xfd" + TOKENS.tobytes()), "Zstandard"),
    "numpy archive": (written("c.npz", archive("zip")), "NumPy archive"),
    "zip": (written("c.bin", archive("zip")), "zip archive"),
    "tar": (written("c.bin", archive("tar")), "WebDataset"),
    "a folder of tars": (lambda folder: written("c.tar", archive("tar"))(folder).parent, "WebDataset"),
    "pickle": (written("c.bin", pickle.dumps(list(range(300)))), "pickle"),
    "an old pickle": (written("c.bin", pickle.dumps(list(range(300)), protocol=2)), "pickle"),
    "safetensors": (written("c.bin", struct.pack("<Q", len(HEADER)) + HEADER + TOKENS.tobytes()), "safetensors"),
    "text": (written("c.bin", b"Once upon a time there was a little girl who liked to tokenise text."), "text; tok"),
    "JSON lines": (written("c.bin", b'{"input_ids": [1, 2, 3]}\n' * 9), "text; tok"),
    "JSON lines by name": (written("c.jsonl", b'{"input_ids": [1, 2, 3]}\n' * 9), "found text"),
    "Parquet by another name": (written("c.bin", b"PAR1" + TOKENS.tobytes()), "Parquet; name it .parquet"),
    "Lit-GPT": (written("c.bin", b"LITPKDS" + TOKENS.tobytes()), "Lit-GPT"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_files_of_other_tools(case, tmp_path):
    make, match = OTHERS[case]
    with pytest.raises(CorpusError, match=match):
        Corpus.open(make(tmp_path), eos_id=0)


def test_tfrecord_by_its_checksum(tmp_path):
    tensorflow_record = struct.pack("<Q", 0) + struct.pack("<I", masked_crc(struct.pack("<Q", 0))) + bytes(600)
    with pytest.raises(CorpusError, match="TFRecord"):
        Corpus.open(written("c.bin", tensorflow_record)(tmp_path), eos_id=0)


def masked_crc(data):
    """CRC32C bit by bit, from its polynomial, and TensorFlow's mask."""
    register = 0xFFFFFFFF
    for bit in (byte >> place & 1 for byte in data for place in range(8)):
        register = register >> 1 ^ (0x82F63B78 * ((register ^ bit) & 1))
    value = register ^ 0xFFFFFFFF
    return (((value >> 15) | (value << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def test_tokens_that_look_like_something_else(tmp_path):
    letters = np.frombuffer(b"To be, or not to be, that is the question. " * 9, np.uint8)
    assert Corpus.open(written("c.bin", letters.tobytes())(tmp_path), dtype="uint8", eos_id=46).num_tokens == len(
        letters
    )
    save_raw(tmp_path / "tokens.bin")
    (tmp_path / "c.bin").unlink()
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": 65}))
    (tmp_path / "index.json").write_text("[]")
    assert Corpus.open(tmp_path, eos_id=0).num_tokens == len(TOKENS), "files beside the tokens"


def test_a_megatron_index_that_a_merge_left_short(tmp_path):
    """Merging tools copy sequences and leave the document index as it was."""
    TOKENS[:6].tofile(tmp_path / "m.bin")
    lengths, pointers = struct.pack("<iii", 2, 1, 3), struct.pack("<qqq", 0, 4, 6)
    for documents, expected in (([0], [2, 1, 3]), ([0, 2], [3, 3]), ([0, 1, 3], [2, 4])):
        header = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, 3, len(documents))
        index = header + lengths + pointers + struct.pack(f"<{len(documents)}q", *documents)
        (tmp_path / "m.idx").write_bytes(index)
        corpus = Corpus.open(tmp_path / "m.bin")
        assert np.diff(corpus.document_starts).tolist() == expected
        assert corpus.tokens().tolist() == TOKENS[:6].tolist()


def refused(path, match, **options):
    with pytest.raises(CorpusError, match=match):
        Corpus.open(path, **{"eos_id": 0, **options})


def test_formats_by_first_bytes_and_names(tmp_path):
    import pyarrow
    from pyarrow import feather, ipc

    table = pyarrow.table({"input_ids": [TOKENS.tolist()] * 3})
    for name in ("stream.bin", "stream.ipc"):
        with ipc.new_stream(str(tmp_path / name), table.schema) as stream:
            stream.write_table(table)
    refused(tmp_path / "stream.bin", "a stream of Arrow; name it .arrow")
    refused(tmp_path / "stream.ipc", "Arrow; name it .arrow")
    (tmp_path / "stream.bin").rename(tmp_path / "stream.arrow")
    assert Corpus.open(tmp_path / "stream.arrow", eos_id=0).num_tokens == 3 * len(TOKENS)
    folder = tmp_path / "feather"
    folder.mkdir()
    feather.write_feather(table, str(folder / "a.feather"))
    refused(folder, r"Arrow \(a\.feather\); name it \.arrow")
    (tmp_path / "orc.bin").write_bytes(b"ORC\x0a" + TOKENS.tobytes())
    refused(tmp_path / "orc.bin", "found ORC")
    (tmp_path / "record.bin").write_bytes(struct.pack("<II", 0xCED7230A, 20) + TOKENS.tobytes())
    refused(tmp_path / "record.bin", "RecordIO")
    for name in ("data.mdb", "x.array_record", "x.bagz", "x.beton", "x.csv", "x.msgpack"):
        (tmp_path / name).write_bytes(bytes(100))
        refused(tmp_path / name, "expected a token file, found ")


def test_names_that_other_tools_give(tmp_path):
    chunk = tmp_path / "chunks" / "chunk-0-1.bin"
    chunk.parent.mkdir()
    chunk.write_bytes(np.array([1, 12, 524], np.uint32).tobytes() + TOKENS.tobytes())
    for place in (chunk, chunk.parent):
        refused(place, "a chunk of litdata")
    index = tmp_path / "cache" / "0a1b-GPTDataset-train-shuffle_index.npy"
    index.parent.mkdir()
    np.save(index, np.arange(100, dtype=np.int32))
    for place in (index, index.parent):
        refused(place, "an index that Megatron keeps of its samples; name the .bin that it is of")
    for mark, tool in (
        ("zarr.json", "a Zarr store"),
        (".zarray", "Zarr"),
        ("shard_ledger.json", "Levanter"),
        ("data.mdb", "LMDB"),
    ):
        store = tmp_path / f"store-{mark.strip('.')}"
        (store / "c").mkdir(parents=True)
        (store / mark).write_text("{}")
        refused(store, tool)


@pytest.mark.parametrize(("mark", "named"), [("bank.json", "a bank; several banks"), ("graft.json", "a graft;")])
def test_folders_of_memgraft_that_hold_no_corpus(tmp_path, mark, named):
    (tmp_path / mark).write_text("{}")
    (tmp_path / "README.md").write_text("a card")
    refused(tmp_path, f"expected token files or text, found {named}")


def test_folders_below_a_folder_are_named(tmp_path):
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"input_ids": [TOKENS.tolist()]})
    for folder, save in (("train", save_raw), ("val", save_raw)):
        (tmp_path / "bare" / folder).mkdir(parents=True)
        save(tmp_path / "bare" / folder / "0.bin")
    refused(
        tmp_path / "bare", r"found them in train, val, which may be splits; name the one you mean, such as .*bare/train"
    )
    (tmp_path / "hub" / "data").mkdir(parents=True)
    (tmp_path / "hub" / ".cache" / "x").mkdir(parents=True)
    parquet.write_table(table, tmp_path / "hub" / ".cache" / "x" / "0.parquet")
    parquet.write_table(table, tmp_path / "hub" / "data" / "0.parquet")
    (tmp_path / "hub" / "README.md").write_text("# A dataset")
    refused(tmp_path / "hub", "found them in data")
    refused(tmp_path / "hub", "found them in data", tokenizer=tmp_path)
    (tmp_path / "deep" / "en" / "test").mkdir(parents=True)
    parquet.write_table(table, tmp_path / "deep" / "en" / "test" / "0.parquet")
    refused(tmp_path / "deep", r"found them in en/test")


def test_links_to_nothing_and_hidden_files(tmp_path):
    save_raw(tmp_path / "a.bin")
    save_raw(tmp_path / ".b.bin")
    (tmp_path / "._a.bin").write_bytes(b"\0\5\x16\7" + bytes(60))
    assert Corpus.open(tmp_path, eos_id=0).num_tokens == len(TOKENS)
    (tmp_path / "c.bin").symlink_to(tmp_path / "gone")
    refused(tmp_path, r"c\.bin: expected a file, found a link to nothing")
    (tmp_path / "c.bin").unlink()
    (tmp_path / "c.bin").symlink_to(tmp_path / "c.bin")
    refused(tmp_path, r"c\.bin: expected a file, found a link to nothing")
