"""Keys judged in blocks, each block by one of however many processes come, kept on the disk until all are there.

A block depends on the keys and the tokenizers alone. Texts are lists of Python for a few thousand keys at a time, on as
many threads as the process may use; what is left of a block are arrays.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from memgraft.bank.locks import Claims
from memgraft.errors import StorageError, TokenError
from memgraft.harvesting.packing import Ragged
from memgraft.harvesting.text import DROP_REASONS, RoundTrip, key_texts
from memgraft.keyset import KeySet
from memgraft.system import num_threads, written_beside
from memgraft.tokenizer import TextCodec

_TEXTS = 4096
"""Keys whose texts are in memory at once, in each thread: about 10 MiB."""
_MOST_THREADS = 8
"""More do not help: the interpreter's part is one at a time."""
_LEAST_BLOCK, _MOST_BLOCK, _BLOCKS = 1 << 12, 1 << 18, 64


@dataclass(frozen=True, kw_only=True)
class Judge:
    """How keys are judged, see `memgraft.harvesting.text`."""

    keys: KeySet
    recipient: TextCodec
    donor: TextCodec
    round_trip: RoundTrip

    @property
    def block_rows(self) -> int:
        """Keys of a block."""
        return int(np.clip(-(-len(self.keys) // _BLOCKS), _LEAST_BLOCK, _MOST_BLOCK))

    @property
    def num_blocks(self) -> int:
        """Blocks of all keys."""
        return -(-len(self.keys) // self.block_rows)

    def judged(self, number: int) -> "Judged":
        """Judges a block.

        Raises:
            TokenError: a key holds a token that the recipient's tokenizer does not have.
        """
        first = number * self.block_rows
        last = min(first + self.block_rows, len(self.keys))
        bounds = [(start, min(start + _TEXTS, last)) for start in range(first, last, _TEXTS)]
        threads = num_threads(most=_MOST_THREADS)
        if threads == 1 or len(bounds) == 1:
            return Judged.joined([self._texts(bound) for bound in bounds])
        # Tokenizers let others run while they work.
        pool = ThreadPoolExecutor(threads, "memgraft-text")
        try:
            return Judged.joined(list(pool.map(self._texts, bounds)))
        finally:
            pool.shutdown(cancel_futures=True)

    def _texts(self, bounds: tuple[int, int]) -> "Judged":
        arrays = self.keys.arrays(*bounds)
        ids, known = arrays.tokens, self.recipient.known
        # Decoders skip ids they do not know, which would pass for a shorter key.
        strange = (ids >= len(known)) | ~known[np.minimum(ids, len(known) - 1)]
        if strange.any():
            place = int(np.flatnonzero(strange)[0])
            row = bounds[0] + int(np.searchsorted(arrays.offsets, place, side="right")) - 1
            raise TokenError(
                f"key {self.keys.key(row)} (row {row}): the recipient tokenizer has no token {int(ids[place])}; "
                "name the tokenizer that made these tokens"
            )
        tokens = ids.tolist()
        lists = [tokens[first:last] for first, last in pairwise(arrays.offsets.tolist())]
        judged = key_texts(lists, self.recipient, self.donor, round_trip=self.round_trip)
        return Judged(
            keep=np.array([reason is None for reason in judged.reasons]),
            tokens=Ragged.of([tokens for tokens in judged.donor_tokens if tokens]),
            dropped=judged.dropped,
        )


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Some keys, judged.

    Attributes:
        keep: (n,) which of them have a usable text.
        tokens: the donor's tokens of these.
        dropped: the others, by reason.
    """

    keep: npt.NDArray[np.bool_]
    tokens: Ragged
    dropped: Counter[str]

    @classmethod
    def joined(cls, parts: list["Judged"]) -> "Judged":
        """The keys of all ``parts``."""
        return cls(
            keep=np.concatenate([part.keep for part in parts]),
            tokens=Ragged.joined([part.tokens for part in parts]),
            dropped=sum((part.dropped for part in parts), Counter()),
        )

    def save(self, path: Path) -> None:
        """Writes the block beside and renames.

        Raises:
            StorageError: the disk refused.
        """
        dropped = np.array([self.dropped[reason] for reason in DROP_REASONS], np.int64)
        with written_beside(path) as beside, open(beside, "wb") as file:
            np.savez(
                file,
                keep=self.keep,
                tokens=self.tokens.tokens,
                lengths=self.tokens.lengths,
                dropped=dropped,
                sizes=np.array([len(self.tokens), len(self.tokens.tokens)], np.int64),
            )

    @classmethod
    def open(cls, path: Path) -> "Judged":
        """A block that `save` wrote."""
        with np.load(path) as found:
            offsets = np.concatenate([[0], np.cumsum(found["lengths"])]).astype(np.int64)
            dropped = Counter(dict(zip(DROP_REASONS, found["dropped"].tolist(), strict=True)))
            return cls(keep=found["keep"], tokens=Ragged(found["tokens"], offsets), dropped=dropped)


class JudgedBlocks:
    """The blocks of one judge in a folder, which several processes fill.

    Args:
        folder: where blocks lie; made by whoever saves the first one.
        claims: file of the locks on blocks, which outlives the folder.
        judge: how they are judged.
        finished: whether all blocks have been merged, and removed, by another process.
        share: this process and how many there are: where it begins.
    """

    def __init__(
        self, folder: Path, claims: Path, judge: Judge, finished: Callable[[], bool], share: tuple[int, int]
    ) -> None:
        self._folder, self._judge, self._finished = folder, judge, finished
        self._claims = Claims(claims)
        first = judge.num_blocks * share[0] // max(share[1], 1)
        self._left = [*range(first, judge.num_blocks), *range(first)]

    def path(self, number: int) -> Path:
        """The file of a block."""
        return self._folder / f"{number:06d}.npz"

    @property
    def num_left(self) -> int:
        """Blocks that are not there."""
        self._left = [number for number in self._left if not self.path(number).exists()]
        return len(self._left)

    def judge_one(self) -> bool:
        """Judges a block that nobody has judged or is at; False where there is none.

        Raises:
            TokenError: a key holds a token that the recipient's tokenizer does not have.
            StorageError: the disk refused.
        """
        for number in self._left:
            if self.path(number).exists() or not self._claims.take(number):
                continue
            try:
                # Nobody merges blocks while one of them is missing, and this one is ours now.
                if self.path(number).exists() or self._finished():
                    continue
                judged = self._judge.judged(number)
                try:
                    self._folder.mkdir(exist_ok=True)
                except OSError as error:
                    raise StorageError(
                        f"{self._folder}: cannot be written: {error.strerror}; free some room"
                    ) from error
                judged.save(self.path(number))
                return True
            finally:
                self._claims.give_back(number)
        return False

    def sizes(self) -> tuple[int, int]:
        """Kept keys and their donor tokens, of all blocks."""
        rows = tokens = 0
        for number in range(self._judge.num_blocks):
            with np.load(self.path(number)) as found:
                mine = found["sizes"].tolist()
            rows, tokens = rows + mine[0], tokens + mine[1]
        return rows, tokens

    def __iter__(self) -> Iterator[Judged]:
        for number in range(self._judge.num_blocks):
            yield Judged.open(self.path(number))

    def remove(self) -> None:
        """Removes what is there."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def close(self) -> None:
        """Gives claims back."""
        self._claims.close()
