"""A small sample of the documents that keys were mined from, kept beside the key set.

It answers, without the corpus, whether text to measure by was mined: by documents, and by runs of tokens where these
were cut or joined otherwise.
"""

import base64
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from memgraft.corpus.overlapping import MOST_SHARED, Documents, Hashes, read_hashes
from memgraft.corpus.writer import storage_errors
from memgraft.errors import CorpusError, FormatError
from memgraft.progress import Progress, callback
from memgraft.system import written_beside

if TYPE_CHECKING:
    from memgraft.corpus.reader import Corpus
    from memgraft.keyset import KeySet

#: Documents, and runs, of a sample at most: 175 kB of JSON.
MOST = 8192
#: Tokens of a corpus that are read for it at most.
MOST_READ = 1 << 28
#: Documents, or runs, of other text with hashes as small as the sample's that tell a share.
FEWEST = 16
#: Tokens of a run.
LENGTH = 32
#: What follows the name of the key set's file.
SUFFIX = ".sample"
_FORMAT = "memgraft.sample"
_WAY_OUT = "remove it, or mine again; the keys are whole without it"


@dataclass(frozen=True, kw_only=True)
class CorpusSample:
    """The smallest hashes of the documents and runs of one corpus.

    Text that has such a hash is in the sample exactly if it is in the corpus, so that shares of other text are
    unbiased, however often something occurs.

    Attributes:
        corpus: the corpus's fingerprint.
        num_tokens: tokens of the corpus.
        num_tokens_read: those of them that were looked at, all up to `MOST_READ`.
        documents: (d,) uint64, ascending; all, where fewer than `MOST`.
        runs: (r,) uint64, ascending; hashes of runs of `LENGTH` tokens, likewise.
    """

    corpus: str
    num_tokens: int
    num_tokens_read: int
    documents: Hashes
    runs: Hashes

    @classmethod
    def of(cls, corpus: "Corpus", *, progress: Progress | bool | None = None) -> "CorpusSample":
        """Reads ``corpus``; of one larger than `MOST_READ`, blocks of documents spread evenly.

        Args:
            corpus: the documents.
            progress: True for bars, or called with ("sample", tokens done, tokens in all).
        """
        progress = callback(progress)
        every = max(1, -(-corpus.num_tokens // MOST_READ))
        documents = runs = np.empty(0, np.uint64)
        read = 0
        for found, sizes, some in read_hashes(corpus, LENGTH, 0, every=every):
            documents, runs = _smallest(documents, found), _smallest(runs, some)
            read += int(sizes.sum())
            if progress is not None:
                progress("sample", min(read * every, corpus.num_tokens - 1), corpus.num_tokens)
        if progress is not None:
            progress("sample", corpus.num_tokens, corpus.num_tokens)
        return cls(
            corpus=corpus.fingerprint,
            num_tokens=corpus.num_tokens,
            num_tokens_read=read,
            documents=documents,
            runs=runs,
        )

    def share(self, other: Documents) -> float | None:
        """What share of ``other`` is in the corpus, 0 to 1, by tokens of documents or by runs, the larger.

        Of a corpus that was not read whole it is the least share. None where too little of ``other`` has hashes as
        small as the sample's to tell: fewer than `FEWEST` runs and documents.
        """
        return max((share for share in self._shares(other) if share is not None), default=None)

    def _shares(self, other: Documents) -> tuple[float | None, float | None]:
        """The share by tokens of documents, and by runs."""
        counts = np.zeros((2, 3), np.int64)
        for documents, sizes, runs in read_hashes(other, LENGTH, 0):
            for place, (known, found, weights) in enumerate(
                ((self.documents, documents, sizes), (self.runs, runs, np.ones(len(runs), np.int64)))
            ):
                small = found <= known[-1] if len(known) == MOST else np.ones(len(found), np.bool_)
                hit = np.isin(found[small], known)
                counts[place] += [np.count_nonzero(small), weights[small].sum(), weights[small][hit].sum()]
        documents_share, runs_share = (
            hit / max(1, weight) if number >= FEWEST or (number and len(known) < MOST) else None
            for (number, weight, hit), known in zip(counts.tolist(), (self.documents, self.runs), strict=True)
        )
        return documents_share, runs_share

    def refuse(self, other: Documents, what: str) -> None:
        """Refuses to measure by documents that keys were mined from.

        Runs alone refuse nothing, as in `refuse_overlap`: licences and the like are in unrelated text.

        Args:
            other: the text.
            what: what it is called in the message.

        Raises:
            CorpusError: more than `MOST_SHARED` of its tokens are in documents that were mined.
        """
        share, _ = self._shares(other)
        if share is not None and share > MOST_SHARED:
            raise CorpusError(
                f"{what}: expected documents that the bank's keys were not mined from, found about {share:.0%} of "
                "its tokens in such; hold documents out with `memgraft split` before mining, or name other text"
            )

    def to_bytes(self) -> bytes:
        """The sample as JSON."""
        facts = {
            "format": _FORMAT,
            "format_version": 1,
            "corpus": self.corpus,
            "num_tokens": self.num_tokens,
            "num_tokens_read": self.num_tokens_read,
            "length": LENGTH,
            "documents": _packed(self.documents),
            "runs": _packed(self.runs),
        }
        return (json.dumps(facts) + "\n").encode()

    @classmethod
    def open(cls, path: Path) -> "CorpusSample":
        """Reads what `write_sample` has written.

        Raises:
            FormatError: it is damaged, or of a later version.
            StorageError: it cannot be read.
        """
        with storage_errors(path, "cannot read the sample; check its permissions, or remove it"):
            data = path.read_bytes()
        try:
            facts: dict[str, Any] = json.loads(data)
            if (facts["format"], facts["format_version"], facts["length"]) != (_FORMAT, 1, LENGTH):
                raise FormatError(
                    f"{path}: expected a sample of version 1 with runs of {LENGTH} tokens, found another; {_WAY_OUT}"
                )
            return cls(
                corpus=str(facts["corpus"]),
                num_tokens=int(facts["num_tokens"]),
                num_tokens_read=int(facts["num_tokens_read"]),
                documents=_unpacked(facts["documents"]),
                runs=_unpacked(facts["runs"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise FormatError(f"{path}: expected the sample of a corpus, found: {error}; {_WAY_OUT}") from None


def sample_path(keys: str | os.PathLike[str]) -> Path:
    """Where the sample of a key set's file lies."""
    path = Path(keys)
    return path.with_name(path.name + SUFFIX)


def write_sample(corpus: "Corpus", keys: str | os.PathLike[str], *, progress: Progress | bool | None = None) -> Path:
    """Writes the sample of ``corpus`` beside the file of the keys that were mined from it.

    Args:
        corpus: the documents.
        keys: the key set's file.
        progress: as for :meth:`CorpusSample.of`.

    Raises:
        StorageError: the disk refused.
    """
    path = sample_path(keys)
    with written_beside(path) as temporary:
        temporary.write_bytes(CorpusSample.of(corpus, progress=progress).to_bytes())
    return path


def sample_of(keys: "KeySet") -> CorpusSample | None:
    """The sample beside a key set's file; None where there is none, or one of another corpus.

    Raises:
        FormatError: it is damaged.
    """
    path = getattr(keys, "path", None)
    if path is None or not (beside := sample_path(path)).is_file():
        return None
    found = CorpusSample.open(beside)
    return found if found.corpus == (keys.metadata.get("corpus") or {}).get("fingerprint") else None


def _smallest(known: Hashes, found: Hashes) -> Hashes:
    """The `MOST` smallest of both, ascending, each once."""
    if len(known) == MOST:
        found = found[found < known[-1]]
    return np.unique(np.concatenate([known, found]))[:MOST]


def _packed(hashes: Hashes) -> str:
    return base64.b64encode(hashes.astype("<u8").tobytes()).decode()


def _unpacked(text: str) -> Hashes:
    return np.frombuffer(base64.b64decode(text, validate=True), "<u8").astype(np.uint64)
