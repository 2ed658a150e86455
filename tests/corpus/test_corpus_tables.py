"""Parquet files and saved datasets give the corpus that token files with the same documents give."""

import errno
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

import corpus_layouts as layouts
from memgraft import mine
from memgraft.corpus import Corpus
from memgraft.errors import CorpusError, StorageError, TokenError

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

DOCUMENTS = [[5, 7, 9, 3], [], [5, 7, 70000], [3]]


def column(documents, kind=None):
    return pa.array(documents, kind or pa.list_(pa.int32()))


def write_parquet(path, documents=DOCUMENTS, kind=None, name="input_ids", **more):
    table = pa.table({"id": pa.array(range(len(documents))), name: column(documents, kind), **more})
    parquet.write_table(table, path, row_group_size=2)
    return path


def write_arrow(path, documents=DOCUMENTS, writer=pa.ipc.new_stream):
    table = pa.table({"input_ids": column(documents, pa.large_list(pa.int64()))})
    with pa.OSFile(str(path), "wb") as sink, writer(sink, table.schema) as stream:
        stream.write_table(table, max_chunksize=3)
    return path


def write_saved(folder):
    """What ``datasets`` saves, of two shards whose names sort the other way round."""
    folder.mkdir()
    for name, part in (("z.arrow", DOCUMENTS[:2]), ("a.arrow", DOCUMENTS[2:])):
        write_arrow(folder / name, part)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "z.arrow"}, {"filename": "a.arrow"}]}))
    return folder


CASES = {
    "parquet": lambda p: write_parquet(p / "c.parquet"),
    "parquet uint32": lambda p: write_parquet(p / "c.parquet", kind=pa.list_(pa.uint32())),
    "parquet large lists": lambda p: write_parquet(p / "c.parquet", kind=pa.large_list(pa.int64())),
    "parquet of one mask": lambda p: write_parquet(
        p / "c.parquet", attention_mask=column([[1] * len(document) for document in DOCUMENTS])
    ),
    "arrow stream": lambda p: write_arrow(p / "c.arrow"),
    "arrow file": lambda p: write_arrow(p / "c.arrow", writer=pa.ipc.new_file),
    "saved dataset": lambda p: write_saved(p / "saved"),
}


@pytest.mark.parametrize("case", CASES)
def test_every_table_gives_the_same_documents(case, tmp_path):
    path = CASES[case](tmp_path)
    corpus = Corpus.open(path)
    assert [corpus.document(i).tolist() for i in range(corpus.num_documents)] == DOCUMENTS
    assert (corpus.format, corpus.paths, corpus.vocab_size) == ("table", [path], None)
    assert corpus.fingerprint == Corpus.open(layouts.write_megatron(tmp_path / "m", DOCUMENTS, "int32")).fingerprint


def test_datasets_own_writer(tmp_path):
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_dict({"input_ids": DOCUMENTS, "text": ["a", "b", "c", "d"]})
    made.save_to_disk(str(tmp_path / "saved"), num_shards=2)
    made.select([3, 0]).save_to_disk(str(tmp_path / "selected"))
    datasets.DatasetDict({"train": made, "test": made}).save_to_disk(str(tmp_path / "splits"))
    corpus = Corpus.open(tmp_path / "saved")
    assert [corpus.document(i).tolist() for i in range(4)] == DOCUMENTS
    assert Corpus.open(tmp_path / "selected").tokens().tolist() == DOCUMENTS[3] + DOCUMENTS[0]
    assert Corpus.open(tmp_path / "splits" / "train").fingerprint == corpus.fingerprint
    with pytest.raises(CorpusError, match=r"one split .*found \['train', 'test'\].*splits/train"):
        Corpus.open(tmp_path / "splits")


@pytest.mark.parametrize("indices", [[3, 0], [2, 2, 1, 3, 0], []])
def test_a_mapping_of_rows_is_followed(tmp_path, indices):
    folder = write_saved(tmp_path / "saved")
    table = pa.table({"indices": pa.array(indices, pa.uint64())})
    with pa.OSFile(str(folder / "indices.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    state = json.loads((folder / "state.json").read_text()) | {"_indices_data_files": [{"filename": "indices.arrow"}]}
    (folder / "state.json").write_text(json.dumps(state))
    if not indices:
        with pytest.raises(CorpusError, match="at least one token"):
            Corpus.open(folder)
        return
    corpus = Corpus.open(folder)
    assert [corpus.document(i).tolist() for i in range(corpus.num_documents)] == [DOCUMENTS[i] for i in indices]
    (folder / "indices.arrow").unlink()
    with pytest.raises(CorpusError, match="the mapping of rows"):
        Corpus.open(folder)


def test_a_mapping_of_rows_that_are_not_there(tmp_path):
    folder = write_saved(tmp_path / "saved")
    for name, values in (("indices", [4]), ("numbers", [0])):
        table = pa.table({name: pa.array(values, pa.uint64())})
        with pa.OSFile(str(folder / "indices.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        state = {"_data_files": [{"filename": "z.arrow"}, {"filename": "a.arrow"}]}
        state["_indices_data_files"] = [{"filename": "indices.arrow"}]
        (folder / "state.json").write_text(json.dumps(state))
        with pytest.raises(CorpusError, match=r"numbers of the 4 rows|expected a column 'indices'"):
            Corpus.open(folder)


def test_what_a_map_left_in_the_cache_is_no_second_shard(tmp_path):
    write_parquet(tmp_path / "words.parquet")
    write_arrow(tmp_path / "cache-0123456789abcdef.arrow")
    with pytest.raises(CorpusError, match=r"datasets\.map left in its cache"):
        Corpus.open(tmp_path)


def test_padding_is_left_out_and_packed_rows_are_cut(tmp_path):
    rows = [[5, 7, 9, 0, 0], [0, 0, 4, 6, 8]]
    masks = column([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1]])
    padded = Corpus.open(write_parquet(tmp_path / "padded.parquet", rows, attention_mask=masks))
    assert [padded.document(i).tolist() for i in range(padded.num_documents)] == [[5, 7, 9], [4, 6, 8]]
    positions = column([[0, 1, 0, 1, 2], [3, 4, 0, 0, 1]])
    packed = Corpus.open(write_parquet(tmp_path / "packed.parquet", rows, position_ids=positions))
    documents = [packed.document(i).tolist() for i in range(packed.num_documents)]
    assert documents == [[5, 7], [9, 0, 0], [0, 0], [4], [6, 8]]
    both = write_parquet(tmp_path / "both.parquet", rows, position_ids=positions, attention_mask=masks)
    corpus = Corpus.open(both)
    assert [corpus.document(i).tolist() for i in range(corpus.num_documents)] == [[5, 7], [9], [4], [6, 8]]


def test_rows_of_one_size(tmp_path):
    rows = [[5, 7, 9], [1, 2, 3], [4, 5, 6]]
    kind = pa.list_(pa.int16(), 3)
    path = write_parquet(
        tmp_path / "c.parquet", rows, kind, position_ids=column([[0, 1, 0], [0, 1, 2], [0, 1, 2]], kind)
    )
    corpus = Corpus.open(path)
    assert [corpus.document(i).tolist() for i in range(corpus.num_documents)] == [[5, 7], [9], *rows[1:]]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("position_ids", [[0, 1, 0, 1, 2], [0, 1]]),
        ("attention_mask", [[1, 1, 2, 2, 2], [1, 1]]),
        ("seq_lengths", [[2, 3], [2]]),
        ("cu_seqlens", [[0, 2, 5], [0, 2]]),
        ("seq_start_id", [[0, 2], [0]]),
        ("seq_idx", [[0, 0, 1, 1, 1], [0, 0]]),
        ("segment_ids", [[7, 7, 3, 3, 3], [3, 3]]),
    ],
)
def test_every_column_that_cuts_rows(tmp_path, name, values):
    path = write_parquet(tmp_path / "c.parquet", [[5, 7, 9, 3, 4], [6, 8]], **{name: column(values)})
    corpus = Corpus.open(path)
    assert [corpus.document(i).tolist() for i in range(corpus.num_documents)] == [[5, 7], [9, 3, 4], [6, 8]]


def test_lengths_lie_where_the_mask_is_set(tmp_path):
    rows, masks = [[5, 7, 9, 0], [0, 4, 6, 8]], [[1, 1, 1, 0], [0, 1, 1, 1]]
    more = {"attention_mask": column(masks), "seq_lengths": column([[1, 2], [2, 1]])}
    corpus = Corpus.open(write_parquet(tmp_path / "c.parquet", rows, **more))
    assert [corpus.document(i).tolist() for i in range(corpus.num_documents)] == [[5], [7, 9], [4, 6], [8]]


def test_tokens_of_tables_lie_where_the_caller_says(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "c.parquet")
    seen = []
    made = tempfile.TemporaryDirectory
    monkeypatch.setattr(
        tempfile, "TemporaryDirectory", lambda *args, **options: seen.append(options) or made(*args, **options)
    )
    Corpus.open(path, temporary=tmp_path / "elsewhere")
    assert [Path(options["dir"]) for options in seen] == [tmp_path / "elsewhere"]
    assert not list((tmp_path / "elsewhere").iterdir())
    with pytest.raises(StorageError, match=r"c\.parquet.*temporary="):
        Corpus.open(path, temporary=path / "no folder")


def test_a_file_system_that_maps_nothing(tmp_path, monkeypatch):
    def refuse(_):
        raise OSError(errno.ENODEV, "No such device")

    monkeypatch.setattr(pa, "memory_map", refuse)
    corpus = Corpus.open(write_arrow(tmp_path / "c.arrow"))
    assert [corpus.document(i).tolist() for i in range(corpus.num_documents)] == DOCUMENTS


def test_eos_cuts_rows(tmp_path):
    path = write_parquet(tmp_path / "c.parquet", [[5, 7, 0, 8], [9, 0]])
    corpus = Corpus.open(path, eos_id=0)
    assert [corpus.document(i).tolist() for i in range(3)] == [[5, 7, 0], [8], [9, 0]]
    assert corpus.eos_id == 0


def test_several_files_and_another_column(tmp_path):
    for number, documents in enumerate((DOCUMENTS[:3], DOCUMENTS[3:])):
        write_parquet(tmp_path / f"train-{number:05}-of-00002.parquet", documents, name="tokens")
    corpus = Corpus.open(tmp_path, column="tokens")
    assert [corpus.document(i).tolist() for i in range(4)] == DOCUMENTS
    assert Corpus.open(sorted(tmp_path.iterdir()), column="tokens").fingerprint == corpus.fingerprint
    train, held = corpus.split(held_out=0.5)
    assert train.format == held.format == "table"
    write_parquet(tmp_path / "test-00000-of-00001.parquet", name="tokens")
    with pytest.raises(CorpusError, match=r"one split, found test .* train"):
        Corpus.open(tmp_path, column="tokens")


def test_keys_of_a_table(tmp_path):
    documents = [[1, 2, 3], [1, 2], [2, 3]]
    keys = mine(Corpus.open(write_parquet(tmp_path / "c.parquet", documents)), orders=(2,), vocab_size=10)
    assert [(keys.key(row), keys.count(row)) for row in range(len(keys))] == [((1, 2), 2), ((2, 3), 2)]


def damaged(name, data):
    def make(folder):
        (folder / name).write_bytes(data)
        return folder / name

    return make


def without_a_shard(folder):
    path = write_saved(folder / "saved")
    (path / "a.arrow").unlink()
    return path


BAD = {
    "no such column": (lambda p: write_parquet(p / "c.parquet", name="tokens"), "column 'input_ids'.*found id, tokens"),
    "text": (lambda p: parquet.write_table(pa.table({"text": ["a"]}), p / "c.parquet") or p, "tokenise it first"),
    "strings": (lambda p: write_parquet(p / "c.parquet", [["a"]], pa.list_(pa.string())), "lists of whole numbers"),
    "floats": (lambda p: write_parquet(p / "c.parquet", [[0.5]], pa.list_(pa.float32())), "lists of whole numbers"),
    "null row": (lambda p: write_parquet(p / "c.parquet", [[1], None]), "without nulls"),
    "null token": (lambda p: write_parquet(p / "c.parquet", [[1, None]]), "without nulls"),
    "mask of another length": (
        lambda p: write_parquet(p / "c.parquet", [[1, 2]], attention_mask=column([[1]])),
        "as long as",
    ),
    "lengths of other rows": (
        lambda p: write_parquet(p / "c.parquet", [[1, 2]], seq_lengths=column([[1, 2]])),
        "sum to its 2 tokens, found 3",
    ),
    "a column that may cut rows": (
        lambda p: write_parquet(p / "c.parquet", [[1, 2]], packed_doc_lens=column([[1, 1]])),
        "packed_doc_lens may say where documents start",
    ),
    "no tokens": (lambda p: write_parquet(p / "c.parquet", [[], []]), "at least one token"),
    "no rows": (lambda p: write_parquet(p / "c.parquet", []), "at least one token"),
    "damaged parquet": (damaged("c.parquet", b"PAR1 and then nothing"), "expected a Parquet file"),
    "damaged arrow": (damaged("c.arrow", b"\0" * 40), "expected an Arrow file"),
    "missing": (lambda p: p / "c.parquet", "found nothing there"),
    "missing shard": (without_a_shard, r"a\.arrow: expected a file of the saved dataset"),
    "damaged state": (damaged("state.json", b"{"), "expected JSON of a saved dataset"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_tables_are_typed_errors(case, tmp_path):
    make, message = BAD[case]
    made = make(tmp_path)
    path = tmp_path if case == "damaged state" else made
    with pytest.raises(CorpusError, match=message) as caught:
        Corpus.open(path)
    assert str(tmp_path) in str(caught.value)


def test_ids_beyond_every_vocabulary(tmp_path):
    with pytest.raises(TokenError, match="found 1048576"):
        Corpus.open(write_parquet(tmp_path / "c.parquet", [[1, 1 << 20]]))
    with pytest.raises(TokenError, match="found -1"):
        Corpus.open(write_parquet(tmp_path / "c.parquet", [[1, -1]]))
    assert Corpus.open(write_parquet(tmp_path / "c.parquet", [[(1 << 20) - 1]])).tokens().tolist() == [(1 << 20) - 1]


def test_without_pyarrow_the_error_names_the_extra(tmp_path):
    path = write_parquet(tmp_path / "c.parquet")
    code = f"""
import sys
sys.modules["pyarrow"] = None
import memgraft
try:
    memgraft.Corpus.open({str(path)!r})
except memgraft.errors.ConfigError as error:
    print(error)
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'memgraft[parquet]'" in answer.stdout


def test_many_rows_keep_their_order(tmp_path):
    generator = np.random.default_rng(0)
    documents = [generator.integers(0, 500, size).tolist() for size in generator.integers(0, 9, 10_000)]
    corpus = Corpus.open(write_parquet(tmp_path / "c.parquet", documents))
    assert corpus.tokens().tolist() == layouts.flatten(documents)
    assert np.diff(corpus.document_starts.astype(np.int64)).tolist() == [len(document) for document in documents]
