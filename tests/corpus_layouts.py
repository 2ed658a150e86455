"""The layouts of the official writers, transcribed independently of the package's own reader and writer.

Megatron: megatron/core/datasets/indexed_dataset.py; datatrove: pipeline/tokens/tokenizer.py (TokenizedFile);
dolma, whose files OLMo reads: tokenizer/memmap_writer.py (MemmapWriter); llm.c: dev/data/data_common.py
(write_datafile); nanoGPT: data/openwebtext/prepare.py.
"""

import csv
import gzip
import struct

import numpy as np

CODES = {"uint8": 1, "int8": 2, "int16": 3, "int32": 4, "int64": 5, "uint16": 8}


def flatten(documents):
    return [token for document in documents for token in document]


def write_megatron(prefix, documents, dtype="uint16", sequences_per_document=1, modes=False):
    lengths, document_indices, pieces = [], [0], []
    for document in documents:
        for piece in np.array_split(np.array(document, dtype), sequences_per_document):
            lengths.append(len(piece))
            pieces.append(piece)
        document_indices.append(len(lengths))
    pointers, at = [], 0
    for length in lengths:
        pointers.append(at)
        at += length * np.dtype(dtype).itemsize
    with open(f"{prefix}.bin", "wb") as stream:
        for piece in pieces:
            stream.write(piece.tobytes(order="C"))
    with open(f"{prefix}.idx", "wb") as stream:
        stream.write(b"MMIDIDX\x00\x00")
        stream.write(struct.pack("<Q", 1))
        stream.write(struct.pack("<B", CODES[dtype]))
        stream.write(struct.pack("<Q", len(lengths)))
        stream.write(struct.pack("<Q", len(document_indices)))
        stream.write(np.array(lengths, dtype=np.int32).tobytes(order="C"))
        stream.write(np.array(pointers, dtype=np.int64).tobytes(order="C"))
        stream.write(np.array(document_indices, dtype=np.int64).tobytes(order="C"))
        if modes:
            stream.write(np.zeros(len(lengths), dtype=np.int8).tobytes())
    return f"{prefix}.bin"


def write_datatrove(path, documents, token_format="H"):
    ends, at = [], 0
    with open(path, "wb") as stream:
        for document in documents:
            stream.write(struct.pack(f"<{len(document)}{token_format}", *document))
            at += len(document)
            ends.append(at)
    with open(f"{path}.index", "wb") as stream:
        stream.write(struct.pack(f"<{len(ends)}Q", *ends))
    return path


def write_nanogpt(path, documents, dtype=np.uint16):
    np.array(flatten(documents), dtype=dtype).tofile(path)
    return path


def write_llmc(path, documents, magic=20240520, version=1, dtype=np.uint16):
    tokens = flatten(documents)
    header = np.zeros(256, dtype=np.int32)
    header[0], header[1], header[2] = magic, version, len(tokens)
    with open(path, "wb") as stream:
        stream.write(header.tobytes())
        stream.write(np.array(tokens, dtype=dtype).tobytes())
    return path


def write_npy(path, documents, dtype=np.uint16):
    np.save(path, np.array(flatten(documents), dtype=dtype))
    return path


def write_olmo(path, documents, dtype=np.uint32):
    tokens = flatten(documents)
    memmap = np.memmap(path, dtype=dtype, mode="w+", shape=(len(tokens),))
    memmap[:] = tokens
    memmap.flush()
    return path


def write_dolma(path, documents, dtype=np.uint16, source="web.jsonl.gz"):
    """A bare memmap, and its boundaries as csv rows: start, end, id, source, line."""
    write_olmo(path, documents, dtype)
    at = 0
    with gzip.open(str(path).replace(".npy", ".csv.gz"), "wt", newline="") as stream:
        rows = csv.writer(stream)
        for number, document in enumerate(documents):
            rows.writerow([at, at + len(document), f"doc-{number}", source, number])
            at += len(document)
    return path
