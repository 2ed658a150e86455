"""A bank: one directory with keys, index, values and manifest."""

import operator
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from memgraft._core import fingerprint_content
from memgraft.arguments import refuse_constructor, refuse_paths
from memgraft.bank.dtypes import AnyArray, FloatArray, channel_scales, decode, value_dtype
from memgraft.bank.extras import check_extras
from memgraft.bank.facts import BankFacts
from memgraft.bank.manifest import Manifest
from memgraft.bank.mixed import AnyTable
from memgraft.bank.opening import open_stack
from memgraft.bank.overlay import Layer, Where
from memgraft.bank.provenance import read as read_origins
from memgraft.bank.rows import RowWriter
from memgraft.bank.staging import Staged, as_rows, cold_reader_name, default_threads, output_bytes, stage_rows
from memgraft.errors import ArgumentError, FingerprintError, FormatError, RowError
from memgraft.index import NgramIndex
from memgraft.keyed import Closed, Closing, place
from memgraft.keyset import KeySet
from memgraft.progress import Progress, callback

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]

_WRITE_BYTES = 64 << 20


class Bank(BankFacts, Closing):
    """An open bank, or a stack of them; see `Bank.open` and `Bank.create`.

    Pickles by path and fingerprint, without resident rows.

    Attributes:
        path: the directory; of a stack that of its base.
        layers: the banks, from the base up, with their paths, facts and rows; one where it is no stack.
    """

    def __new__(cls, path: object, *opened: object) -> "Bank":
        """Refuses a path alone, which `open` takes.

        Raises:
            ArgumentError: nothing else is given.
        """
        if not opened:
            refuse_constructor(path, Bank, "memgraft.Bank.open")
        return super().__new__(cls)

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        keys: KeySet,
        index: NgramIndex,
        table: AnyTable,
        layers: Sequence[Layer] = (),
    ) -> None:
        super().__init__(path, manifest, index, layers)
        self.keys = keys
        self._table = table
        self._dtype = value_dtype(manifest.dtype)
        self._channel_scales: FloatArray | None = None

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        keys: KeySet,
        values: AnyArray,
        taps: Sequence[int],
        dtype: str = "bf16",
        index: NgramIndex | None = None,
        donor: Mapping[str, Any] | None = None,
        tokenizer: Mapping[str, Any] | None = None,
        dropped: Mapping[str, int] | None = None,
        corpus: Mapping[str, Any] | None = None,
        shard_bytes: int = 4 << 30,
    ) -> "Bank":
        """Writes a bank of ``values`` at ``path`` and opens it.

        Args:
            path: the directory to be; must not exist.
            keys: R keys.
            values: ``(R, taps, value_dim)`` float32, float16, or bfloat16 bits as uint16.
            taps: donor depths, one per tap.
            dtype: storage type.
            index: the keys' index; built where not given.
            donor: the donor's facts.
            tokenizer: the recipient tokenizer's facts.
            dropped: keys that were mined and not harvested, by reason.
            corpus: the corpus's facts; the key set's metadata by default.
            shard_bytes: upper bound of a shard's size.

        Raises:
            ArgumentError: shapes do not fit, values are not finite, or ``path`` exists.
            FingerprintError: ``index`` belongs to other keys.
            StorageError: the disk refused.
        """
        refuse_paths(keys=keys)
        try:
            taps = [operator.index(tap) for tap in taps]
        except TypeError:
            raise ArgumentError(f"taps: expected donor depths, one per tap, as (8,), found {taps!r}") from None
        try:
            values = np.asarray(values)
        except (TypeError, RuntimeError) as error:
            raise ArgumentError(
                f"values: numpy cannot take them as they are ({error}); of a tensor give .detach().cpu(), and of "
                "bfloat16 its bits, .view(torch.uint16)"
            ) from error
        if values.ndim != 3 or values.shape[:2] != (len(keys), len(taps)):
            raise ArgumentError(
                f"values: expected ({len(keys)} keys, {len(taps)} taps, value_dim), found {values.shape}"
            )
        writer = RowWriter(
            path,
            keys=keys,
            taps=taps,
            value_dim=values.shape[2],
            dtype=dtype,
            donor=donor or {},
            tokenizer=tokenizer or {},
            scales=channel_scales(values) if value_dtype(dtype).scales == "channel" else None,
            shard_bytes=shard_bytes,
        )
        with writer:
            step = max(1, _WRITE_BYTES // writer.row_bytes)
            for start in range(0, len(values), step):
                writer.write(start, values[start : start + step])
            return cls.open(writer.seal(index=index, dropped=dropped, corpus=corpus))

    @classmethod
    def open(
        cls,
        path: Where,
        *,
        resident: bool | int = False,
        threads: int | None = None,
        cold_reader: Literal["pread", "io_uring"] = "pread",
    ) -> "Bank":
        """Opens the bank at ``path``, reading headers only, and checks that its parts belong together.

        Several banks of one donor are one memory, from the base up: the longest match of all wins, at equal length the
        later bank's. Their rows are numbered through (`layers`); nothing is copied or rewritten. Rows of banks that are
        stored in different types are given as fp32.

        Args:
            path: the bank directory, or a list of them; one text may name several with commas, ``base/,law/``.
            resident: copy the values into memory of this process: True for all, a number of rows for the most
                frequent ones (of a stack the base's come first). Processes share mapped values, not resident ones.
            threads: threads of that copy.
            cold_reader: how rows that are not in memory are read. Where the system refuses ``io_uring``, ``pread``
                takes its place, and `cold_reader` and the facts of each staging say so.

        Raises:
            ArgumentError: no such ``cold_reader``; no bank, or one twice.
            StorageError: a file is missing or cannot be read.
            FormatError: a file is damaged, truncated or of another version.
            FingerprintError: a file belongs to another bank, or banks of a stack do not fit together.
        """
        folder, manifest, keys, index, table, layers = open_stack(
            path, resident=resident, threads=threads or default_threads(), cold_reader=cold_reader
        )
        return cls(folder, manifest, keys, index, table, layers)

    def __reduce__(self) -> tuple[Callable[..., "Bank"], tuple[list[str], str, str]]:
        # Loader workers look up and do not gather: a copy of the values in each would only take memory.
        return _reopen, ([str(path) for path in self.paths], self.fingerprint, self._table.cold_reader[0])

    def __repr__(self) -> str:
        if isinstance(self._table, Closed):
            return f"Bank({self._table})"
        return (
            f"Bank({' + '.join(map(str, self.paths))!r}, num_rows={self.num_rows}, taps={self.taps}, "
            f"value_dim={self.value_dim}, dtype={self.dtype!r})"
        )

    @property
    def bytes_per_row(self) -> int:
        """Bytes of one row, all taps, without scales."""
        return self._table.row_bytes

    @property
    def resident_rows(self) -> int:
        """Rows held in memory of this process; the most frequent ones."""
        return self._table.resident_rows

    @property
    def cold_reader(self) -> str:
        """How rows that are not in memory are read, and why that is not what was asked for where it is not."""
        return cold_reader_name(*self._table.cold_reader)

    def __len__(self) -> int:
        return self.num_rows

    def __contains__(self, tokens: object) -> bool:
        """Whether exactly these tokens are a key, as for :class:`memgraft.NgramIndex`."""
        return tokens in self.index

    def __getitem__(self, rows: Any) -> FloatArray:
        """The values of a row, a slice or an array of rows as float32, ``(..., taps, value_dim)``.

        Raises:
            ArgumentError: several indices, or no integers.
            RowError: no such row; -1 alone is the last one here, as everywhere in Python, in an array a miss.
        """
        if isinstance(rows, slice):
            return self.floats(np.arange(*rows.indices(self.num_rows), dtype=np.int32))
        if isinstance(rows, tuple):
            raise ArgumentError("rows: expected a row, a slice or an array of rows, got several in []; give a list")
        if isinstance(rows, int | np.integer):
            values: FloatArray = self.floats(np.array([place(int(rows), self.num_rows)], dtype=np.int32))[0]
            return values
        return self.floats(rows)

    def close(self) -> None:
        """Lets go of files and resident rows; every later use is refused."""
        self._table = Closed(f"bank {self.path}")  # type: ignore[assignment]
        self.index.close()
        self.keys.close()

    def to_pandas(self, num_rows: int | None = None) -> "pd.DataFrame":
        """A table of the most frequent rows: order, count, documents, key, and text where the bank has its tokenizer.

        Arguments and errors as for :meth:`memgraft.KeySet.to_pandas`.
        """
        return self.index.to_pandas(num_rows, tokenizer=self.tokenizer_path)

    def values(self, rows: Any) -> AnyArray:
        """The values of ``rows`` in storage form.

        Args:
            rows: integers of any shape, each a row (-1 is not).

        Returns:
            ``rows.shape + (taps, value_dim)``; bfloat16 as uint16, fp8 as uint8 codes.

        Raises:
            RowError: a row is -1, the miss of a lookup.
            ArgumentError: a row is out of range.
            FormatError: a shard changed since the bank was opened.
        """
        wanted = as_rows(rows)
        if wanted.size and int(wanted.min()) == -1:
            raise RowError("rows: -1 is a miss, which has no value; leave misses out: rows[rows >= 0]")
        out = np.empty((wanted.size, len(self.taps), self.value_dim), dtype=self._dtype.storage)
        self._table.gather(wanted.reshape(-1), output_bytes(out), default_threads())
        return out.reshape(*wanted.shape, *out.shape[1:])

    def scales(self, rows: Any) -> FloatArray | None:
        """The fp32 scales of ``rows``: ``rows.shape + (taps,)`` for fp8, ``(taps, value_dim)`` for int8, else None."""
        if self._dtype.scales == "row":
            wanted = as_rows(rows)
            out = np.empty((wanted.size, len(self.taps)), dtype="<f4")
            self._table.gather_scales(wanted.reshape(-1), output_bytes(out))
            return out.reshape(*wanted.shape, len(self.taps))
        if self._dtype.scales == "channel" and self._channel_scales is None:
            self._channel_scales = self._table.channel_scales().view("<f4").reshape(len(self.taps), self.value_dim)
        return self._channel_scales

    def floats(self, rows: Any) -> FloatArray:
        """The values of ``rows`` as float32, ``rows.shape + (taps, value_dim)``; raises as `values`."""
        return decode(self.values(rows), self._dtype, self.scales(rows))

    def stage(
        self,
        tokens: Any = None,
        *,
        rows: Any = None,
        orders: Any = None,
        segments: Any = None,
        eos_id: int | None = None,
        cu_seqlens: Any = None,
        out: AnyArray | None = None,
        grow: Callable[[int], AnyArray] | None = None,
        threads: int | None = None,
    ) -> Staged:
        """Looks up ``tokens`` and gathers each distinct row once.

        Args:
            tokens: ids ``(T,)`` or ``(B, T)``; not needed where ``rows`` is given.
            rows: int32 rows found before, -1 = miss.
            orders: uint8 orders that go with ``rows``.
            segments: ints shaped like the tokens; look-back stops where they change, a negative one is padding.
            eos_id: ends a segment at each EOS.
            cu_seqlens: segment edges of a packed ``(T,)``.
            out: writable array with room for the distinct rows; its start is overwritten.
            grow: called with the bytes needed where ``out`` is too small; gives the array to use instead.
            threads: threads of lookup and gather.

        Raises:
            ArgumentError: a row out of range or an ``out`` too small, which is then untouched.
            TokenError: a token outside the vocabulary.
            FormatError: a shard changed since the bank was opened.
            StorageError: a read failed; names file and offset.
        """
        started = time.perf_counter()
        threads = default_threads() if threads is None else threads
        if rows is None:
            if tokens is None:
                raise ArgumentError("stage: expected tokens or rows, got neither")
            rows, orders = self.lookup(tokens, segments=segments, eos_id=eos_id, cu_seqlens=cu_seqlens, threads=threads)
        return stage_rows(
            self._table,
            rows,
            orders,
            out=out,
            grow=grow,
            threads=threads,
            scales=self.scales,
            started=started,
        )

    def distinct(self, rows: Any) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """The distinct rows of ``rows`` (-1 = miss), ascending, and each position's place among them (-1 = miss).

        Raises:
            ArgumentError: a row is out of range.
        """
        found = as_rows(rows)
        unique, inverse, _, _ = self._table.stage(found.reshape(-1), np.empty(0, np.uint8), 1)
        return unique, inverse.reshape(found.shape)

    def lookup(
        self,
        tokens: Any,
        *,
        segments: Any = None,
        eos_id: int | None = None,
        cu_seqlens: Any = None,
        threads: int | None = None,
        unknown: Literal["error", "miss"] = "error",
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
        """Rows (int32, -1 = miss) and orders (uint8, 0 = miss) of ``tokens``.

        Arguments as in :meth:`memgraft.NgramIndex.lookup`.
        """
        return self.index.lookup(
            tokens, segments=segments, eos_id=eos_id, cu_seqlens=cu_seqlens, threads=threads, unknown=unknown
        )

    def warm(self, num_rows: int | None = None, *, threads: int | None = None) -> int:
        """Reads the most frequent ``num_rows`` rows (all by default) so that the system holds them.

        Returns:
            The bytes read.

        Raises:
            StorageError: a read failed; names file and offset.
            FormatError: a shard changed since the bank was opened.
        """
        num_rows = self.num_rows if num_rows is None else num_rows
        if num_rows < 0:
            raise ArgumentError(f"num_rows: expected at least 0, found {num_rows}")
        return self._table.warm(num_rows, threads or default_threads())

    def verify(self, *, threads: int | None = None, progress: Progress | bool | None = None) -> None:
        """Recomputes every checksum.

        Args:
            threads: threads that read and hash.
            progress: True for bars, or called with ("verify", bytes done, bytes in all) after each file.

        Raises:
            FormatError: a file does not hold what was written.
            StorageError: a file cannot be read; names file and offset.
        """
        progress = callback(progress)
        threads = default_threads() if threads is None else threads
        total = sum(shard.num_bytes for shard in self.manifest.shards)
        done = 0
        self.keys.verify(threads=threads)
        self.index.verify(threads=threads)
        for layer in self.layers:
            check_extras(layer.path, layer.manifest)
            if "sources" in layer.manifest.corpus:
                read_origins(layer.path, layer.manifest.corpus)
        for entry, shard in zip(self.manifest.shards, self._table.shards(), strict=True):
            found = fingerprint_content(shard["path"], shard["data_start"], threads)
            if found != entry.content:
                raise FormatError(
                    f"{shard['path']}: damaged: expected content {entry.content}, found {found}; restore the file"
                )
            done += entry.num_bytes
            if progress is not None:
                progress("verify", done, total)


def _reopen(paths: str | list[str], fingerprint: str, cold_reader: Literal["pread", "io_uring"]) -> Bank:
    bank = Bank.open(paths, cold_reader=cold_reader)
    if bank.fingerprint != fingerprint:
        raise FingerprintError(
            f"{' + '.join(map(str, bank.paths))}: expected bank {fingerprint}, found {bank.fingerprint}: another bank "
            "has taken its place"
        )
    return bank
