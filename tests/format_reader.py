"""A reader of banks and their files written from docs/FORMAT.md alone: numpy and BLAKE3, no memgraft."""

from __future__ import annotations

import json
import struct
import zlib
from itertools import pairwise
from pathlib import Path

import numpy as np
from blake3 import blake3

NO_ROW = 2**32 - 1


class Container:
    """The header and the sections of one file, every checksum checked."""

    def __init__(self, path: Path, kind: int) -> None:
        data = path.read_bytes()
        assert data[:8] == b"MEMGRAFT"
        endian, major, _minor, header, found_kind, self.flags, sections = struct.unpack_from("<IHHIIII", data, 8)
        assert (endian, major, header, found_kind) == (0x01020304, 1, 4096, kind)
        assert blake3(data[:4064]).digest() == data[4064:4096]
        length, self.vocab_size, self.max_order, self.num_keys = struct.unpack_from("<QIIQ", data, 32)
        assert length == len(data)
        self.by_order = struct.unpack_from("<16Q", data, 64)
        assert sum(self.by_order) == self.num_keys
        self.fingerprint, self.keyset_fingerprint = data[192:224], data[224:256]
        self.parameters = struct.unpack_from("<16Q", data, 320)
        self.sections: dict[int, bytes] = {}
        end = 4096
        for i in range(sections):
            tag, alignment, offset, size = struct.unpack_from("<IIQQ", data, 512 + 64 * i)
            assert offset % alignment == 0
            assert not any(data[end:offset])
            end = offset + size
            self.sections[tag] = data[offset:end]
            assert blake3(self.sections[tag]).digest() == data[512 + 64 * i + 32 : 512 + 64 * i + 64]
        assert end == len(data)

    def array(self, tag: int, dtype: str) -> np.ndarray:
        return np.frombuffer(self.sections[tag], dtype=dtype)


def elias_fano(words: np.ndarray) -> list[int]:
    n, universe, low_bits, high_words = (int(word) for word in words[:4])
    low_words = -(-n * low_bits // 64)
    low = int.from_bytes(words[4 : 4 + low_words].tobytes(), "little")
    high = words[4 + low_words : 4 + low_words + high_words]
    ones = np.flatnonzero(np.unpackbits(high.view(np.uint8), bitorder="little"))
    assert len(ones) == n
    samples = words[4 + low_words + high_words :]
    assert samples.tolist() == ones[::256].tolist()
    mask = (1 << low_bits) - 1
    values = [(int(bit) - i) << low_bits | (low >> (i * low_bits)) & mask for i, bit in enumerate(ones)]
    assert all(a < b for a, b in pairwise(values))
    assert all(value < universe for value in values)
    return values


def nibbles(words: np.ndarray) -> list[int]:
    n, groups = int(words[0]), int(words[1])
    num_samples = -(-n // 128)
    samples, data = words[2 : 2 + num_samples].tolist(), words[2 + num_samples :]
    stream = [int(data[g // 16]) >> (4 * (g % 16)) & 15 for g in range(groups)]
    values, starts, at = [], [], 0
    for _ in range(n):
        starts.append(at)
        value, shift = 0, 0
        while True:
            group = stream[at]
            at += 1
            value |= (group & 7) << shift
            shift += 3
            if group < 8:
                break
        values.append(value)
    assert at == groups
    assert starts[::128] == samples
    return values


def varints(raw: bytes, n: int) -> tuple[list[int], bytes]:
    """The first ``n`` LEB128 numbers, and what follows them."""
    values, at = [], 0
    for _ in range(n):
        value, shift = 0, 0
        while True:
            byte = raw[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        values.append(value)
    return values, raw[at:]


def packed_level(section: bytes, above: int, vocab_size: int) -> list[tuple[int, int]]:
    """(rank of the parent, last token) of each prefix."""
    children, rest = varints(zlib.decompress(section), above)
    parents = np.repeat(np.arange(above), children).tolist()
    planes = np.frombuffer(rest, "u1").reshape(-1, len(parents)).astype(np.int64)
    assert len(planes) == (1 if vocab_size <= 2**8 else 2 if vocab_size <= 2**16 else 3)
    gaps = sum(plane << 8 * i for i, plane in enumerate(planes)).tolist()
    pairs: list[tuple[int, int]] = []
    for parent, gap in zip(parents, gaps, strict=True):
        same = bool(pairs) and pairs[-1][0] == parent
        pairs.append((parent, pairs[-1][1] + 1 + gap if same else gap))
    return pairs


def packed_numbers(section: bytes, n: int) -> list[int]:
    values, rest = varints(zlib.decompress(section), n)
    assert not rest
    return values


class KeyFile(Container):
    """keys.mgk."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, 1)
        tokens, lengths = self.array(1, "<u4"), self.array(2, "u1")
        ends = np.cumsum(lengths, dtype=np.int64)
        self.keys = [tuple(tokens[end - n : end].tolist()) for end, n in zip(ends, lengths, strict=True)]
        assert self.array(3, "<u8").tolist() == (ends - lengths)[::64].tolist()
        self.counts = self.array(4, "<u8").tolist()
        self.documents = self.array(5, "<u8").tolist()
        self.reserved = self.array(6, "<u4")
        head = struct.pack("<IQ", self.vocab_size, len(self.reserved))
        hashes = b"".join(blake3(self.sections[tag]).digest() for tag in (1, 2, 4, 5))
        assert self.fingerprint == blake3(b"memgraft keyset v1" + head + self.reserved.tobytes() + hashes).digest()


class IndexFile(Container):
    """index.mgi: keys and rows from the canonical sections, answers from the table."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, 2)
        assert self.fingerprint == blake3(b"memgraft index v1" + self.keyset_fingerprint).digest()
        levels: list[list[tuple[int, ...]]] = [[()]]
        packed = 128 in self.sections
        assert packed <= bool(self.flags & 1)
        for n in range(1, self.max_order + 1):
            if packed:
                pairs = packed_level(self.sections[160 + n], len(levels[-1]), self.vocab_size)
            else:
                pairs = [divmod(value, self.vocab_size) for value in elias_fano(self.array(32 + n, "<u8"))]
            levels.append([(*levels[-1][parent], token) for parent, token in pairs])
        self.prefixes = [prefix for level in levels[1:] for prefix in level]
        coded = self.numbers(64, packed)
        base = self.parameters[0]
        counts = {prefix: c + base - 1 for prefix, c in zip(self.prefixes, coded, strict=True) if c}
        self.keys = sorted(counts, key=lambda key: (-counts[key], key))
        self.counts = [counts[key] for key in self.keys]
        self.documents = [0] * len(self.keys)
        if (129 if packed else 65) in self.sections:
            zigzags = dict(zip(self.prefixes, self.numbers(65, packed), strict=True))
            differences = [z // 2 if z % 2 == 0 else -(z + 1) // 2 for z in map(zigzags.__getitem__, self.keys)]
            self.documents = [count - d for count, d in zip(self.counts, differences, strict=True)]
        if self.flags & 1:
            return
        assert [self.prefixes[node] for node in self.array(18, "<u4")] == self.keys
        self.table = self.array(16, "<u4").tolist()
        self.regions = self.array(17, "<u4").reshape(-1, 2).tolist()

    def numbers(self, tag: int, packed: bool) -> list[int]:
        """One a prefix: section ``tag``, or its packed form."""
        if packed:
            return packed_numbers(self.sections[tag + 64], len(self.prefixes))
        return nibbles(self.array(tag, "<u8"))

    def home_lines(self, line: int) -> int:
        return next(lines for start, lines in reversed(self.regions) if line >= start)

    def step(self, state: int, token: int) -> tuple[int, int, int]:
        """(state, row or -1, order) after reading ``token``."""
        while True:
            if state == 0:
                unit = token
            else:
                lines = self.home_lines(state // 4)
                home = ((token * 0x9E3779B1) % 2**32) * lines >> 32
                unit = state + 4 * home
            for past in range(self.parameters[2] + 1):
                word = 4 * unit + 16 * past
                first = self.table[word]
                n = first >> 26 & 7
                tokens = [entry & (2**21 - 1) for entry in self.table[word : word + n]]
                if token in tokens:
                    i = tokens.index(token)
                    row = self.table[word + 2 * n + i]
                    return self.table[word + n + i], -1 if row == NO_ROW else row, self.table[word + i] >> 21 & 31
                if not first >> 29 & 1:
                    break
            assert state != 0
            state = self.table[word + 3 * n]

    def lookup(self, tokens: list[int]) -> tuple[list[int], list[int]]:
        state, rows, orders = 0, [], []
        for token in tokens:
            state, row, order = self.step(state, token)
            rows.append(row)
            orders.append(order)
        return rows, orders


def e4m3(code: int) -> float:
    """The number that an fp8 code stands for: 4 exponent bits of bias 7, 3 mantissa bits, no infinities."""
    sign, exponent, mantissa = -1.0 if code & 128 else 1.0, code >> 3 & 15, code & 7
    assert code & 127 != 127, "not a number"
    return sign * (mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7))


class ShardFile:
    """values-0000i-of-0000N.safetensors: floats, with every rule of the layout checked."""

    def __init__(self, path: Path) -> None:
        data = path.read_bytes()
        (length,) = struct.unpack_from("<Q", data)
        header = json.loads(data[8 : 8 + length])
        self.metadata = header.pop("__metadata__")
        assert (self.metadata["format"], self.metadata["format_version"]) == ("memgraft-values", "1")
        content = data[8 + length :]
        assert self.metadata["content"] == blake3(content).hexdigest()
        end = 0
        found: dict[str, np.ndarray] = {}
        kinds = {"BF16": "<u2", "F16": "<f2", "F32": "<f4", "F8_E4M3": "u1", "I8": "i1"}
        for name in ("scales", "values"):
            if name in header:
                begin, stop = header[name]["data_offsets"]
                assert begin == end
                end = stop
                kind = np.dtype(kinds[header[name]["dtype"]])
                found[name] = np.frombuffer(content[begin:stop], kind).reshape(header[name]["shape"])
        assert end == len(content)
        assert (8 + length + header["values"]["data_offsets"][0]) % 4096 == 0
        self.dtype, values = header["values"]["dtype"], found["values"]
        self.num_bytes = len(data)
        if self.dtype == "BF16":
            self.floats = (values.astype(np.uint32) << 16).view(np.float32)
        elif self.dtype == "F8_E4M3":
            codes = np.vectorize(e4m3, otypes=[np.float32])(values)
            self.floats = codes * found["scales"][:, :, None]
        elif self.dtype == "I8":
            self.floats = values.astype(np.float32) * found["scales"]
        else:
            self.floats = values.astype(np.float32)


class BankFolder:
    """A bank's directory: manifest, keys, index and ``floats [rows, taps, value_dim]``."""

    def __init__(self, path: Path) -> None:
        facts = json.loads((path / "bank.json").read_text())
        assert facts["format_version"] == "1.0"
        named = {name: entry for name, entry in facts.items() if name not in ("tool", "fingerprint")}
        text = json.dumps(named, sort_keys=True, separators=(",", ":"))
        assert blake3(text.encode()).hexdigest() == facts["fingerprint"]
        self.keys, self.index = KeyFile(path / "keys.mgk"), IndexFile(path / "index.mgi")
        assert (self.keys.fingerprint.hex(), self.index.fingerprint.hex()) == (facts["keyset"], facts["index"])
        shards = [ShardFile(path / entry["file"]) for entry in facts["shards"]]
        first_row = 0
        for place, (entry, shard) in enumerate(zip(facts["shards"], shards, strict=True)):
            assert shard.metadata["keyset"] == facts["keyset"]
            assert shard.metadata["content"] == entry["content"]
            assert shard.metadata["shard"] == f"{place + 1} of {len(shards)}"
            assert int(shard.metadata["first_row"]) == first_row
            assert (len(shard.floats), shard.num_bytes) == (entry["num_rows"], entry["num_bytes"])
            first_row += entry["num_rows"]
        self.floats = np.concatenate([shard.floats for shard in shards])
        assert self.floats.shape == (facts["num_rows"], len(facts["taps"]), facts["value_dim"])
        assert len(self.keys.keys) == facts["num_rows"]
        self.facts = facts


def leb128(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


class RunFile:
    """A run file: ``records`` are (tokens, tag, count)."""

    def __init__(self, path: Path) -> None:
        data = path.read_bytes()
        assert data[:8] == b"MEMGRUNS"
        endian, major, self.minor, tail, length = struct.unpack_from("<IHHQQ", data, 8)
        assert (endian, major, tail + length) == (0x01020304, 1, len(data))
        assert blake3(data[tail:]).digest() == data[32:64]
        (text,) = struct.unpack_from("<Q", data, tail)
        self.facts = json.loads(data[tail + 8 : tail + 8 + text])
        self.body = data[64:tail]
        self.bits = int(self.facts["vocab_size"]).bit_length()
        self.slots = 64 // self.bits
        order = self.facts["max_order"]
        self.words = -(-order // self.slots)
        used = (order - (self.words - 1) * self.slots) * self.bits
        self.num_bytes = self.words * 8 - (0 if self.minor == 0 else (64 - used) // 8)
        assert self.facts.get("key_bytes") == (None if self.minor == 0 else self.num_bytes)
        self.records = []
        at = 64
        for entry in range(tail + 8 + text, len(data), 56):
            token, zero, offset, size = struct.unpack_from("<IIQQ", data, entry)
            assert (zero, offset) == (0, at)
            assert blake3(data[at : at + size]).digest() == data[entry + 24 : entry + 56]
            last = bytes(self.num_bytes)
            at += size
            while offset < at:
                head = data[offset]
                shared, fresh = head & 127, self.num_bytes - (head & 127)
                last = last[:shared] + data[offset + 1 : offset + 1 + fresh]
                tag, offset = leb128(data, offset + 1 + fresh)
                count, offset = (1, offset) if head & 128 else leb128(data, offset)
                self.records.append((self.tokens(last), tag, count))
                assert self.records[-1][0][0] >= token
            assert offset == at
        assert len(self.records) == self.facts["num_records"]
        assert self.records == sorted(self.records)

    def tokens(self, key: bytes) -> tuple[int, ...]:
        found = []
        for word in struct.unpack(f">{self.words}Q", key.ljust(self.words * 8, b"\0")):
            found += [(word >> (64 - self.bits * (slot + 1))) & (2**self.bits - 1) for slot in range(self.slots)]
        length = next((i for i, value in enumerate(found) if value == 0), len(found))
        assert not any(found[length:])
        return tuple(value - 1 for value in found[:length])
