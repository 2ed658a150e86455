"""A small sample of the documents that keys were mined from, kept beside the key set.

It answers, without the corpus, whether text to measure by was mined: by documents, and by runs of tokens where these
were cut or joined otherwise.
"""

import base64
import functools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from memgraft._core import fingerprint_bytes, hash_documents
from memgraft.corpus.blocks import BLOCK
from memgraft.corpus.overlapping import ALL, MOST_SHARED, Delimited, Hashes, read_documents, read_hashes
from memgraft.corpus.writer import storage_errors
from memgraft.distinct import are_among, distinct
from memgraft.errors import CorpusError, FormatError
from memgraft.keyset import SAMPLE_SUFFIX, KeySet
from memgraft.progress import Progress, callback
from memgraft.system import write_beside

if TYPE_CHECKING:
    from memgraft.corpus.reader import Corpus

MOST = 8192
"""Documents, and runs, of a sample at most: 175 kB of JSON."""
MOST_READ = 1 << 28
"""Tokens of a corpus that are read for it at most."""
FEWEST = 16
"""Documents, or runs, of other text with hashes as small as the sample's that tell a share."""
LENGTH = 32
"""Tokens of a run."""
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
    def of(
        cls, corpus: "Corpus | Shard", *, progress: Progress | bool | None = None, block_tokens: int = BLOCK
    ) -> "CorpusSample":
        """Reads ``corpus``; of one larger than `MOST_READ`, blocks of documents spread evenly.

        Args:
            corpus: the documents, or those of one rank.
            progress: True for bars, or called with ("sample", tokens done, tokens in all).
            block_tokens: tokens of a block.
        """
        progress = callback(progress)
        every = max(1, -(-corpus.num_tokens // MOST_READ))
        documents = runs = np.empty(0, np.uint64)
        read = 0
        for tokens, edges in read_documents(corpus, every=every, block_tokens=block_tokens):
            # Of the runs, only those that have a chance: the first blocks leave few.
            found, sizes, some = hash_documents(tokens, edges, corpus.eos_id, LENGTH, 0, _most(runs))
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

    @classmethod
    def joint(cls, samples: Iterable["CorpusSample"], corpus: str) -> "CorpusSample":
        """The sample of all that ``samples`` are of: the one that reading it at once gives, where all was read.

        Args:
            samples: in any order; of those of one corpus the first counts. Tokens of a corpus that is in two unions are
                counted in both.
            corpus: what the result says it is of (`joint_name`).
        """
        each = list({one.corpus: one for one in reversed(list(samples))}.values())
        documents = runs = np.empty(0, np.uint64)
        for one in each:
            documents, runs = _smallest(documents, one.documents), _smallest(runs, one.runs)
        return cls(
            corpus=corpus,
            num_tokens=sum(one.num_tokens for one in each),
            num_tokens_read=sum(one.num_tokens_read for one in each),
            documents=documents,
            runs=runs,
        )

    def share(self, other: Delimited) -> float | None:
        """What share of ``other`` is in the corpus, 0 to 1, by tokens of documents or by runs, the larger.

        Of a corpus that was not read whole it is the least share. None where too little of ``other`` has hashes as
        small as the sample's to tell: fewer than `FEWEST` runs and documents.
        """
        return max((share for share in self._shares(other) if share is not None), default=None)

    def _shares(self, other: Delimited) -> tuple[float | None, float | None]:
        """The share by tokens of documents, and by runs."""
        counts = np.zeros((2, 3), np.int64)
        for documents, sizes, runs in read_hashes(other, LENGTH, most=_most(self.runs)):
            for place, (known, found, weights) in enumerate(
                ((self.documents, documents, sizes), (self.runs, runs, np.ones(len(runs), np.int64)))
            ):
                small = found <= np.uint64(_most(known))
                hit = are_among(found[small], known)
                counts[place] += [np.count_nonzero(small), weights[small].sum(), weights[small][hit].sum()]
        documents_share, runs_share = (
            hit / max(1, weight) if number >= FEWEST or (number and len(known) < MOST) else None
            for (number, weight, hit), known in zip(counts.tolist(), (self.documents, self.runs), strict=True)
        )
        return documents_share, runs_share

    def refuse(self, other: Delimited, what: str) -> None:
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
        return cls.of_bytes(data, path)

    @classmethod
    def of_bytes(cls, data: bytes, path: Path) -> "CorpusSample":
        """What `to_bytes` gave; ``path`` is named in errors; raises as `open`."""
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


@dataclass(frozen=True, kw_only=True)
class Shard:
    """The documents of one rank of a corpus, which follow one another.

    Attributes:
        corpus: the whole.
        rank: which, from 0.
        world: shards of about equal tokens.
        fingerprint: what its sample says it is of.
    """

    corpus: "Corpus"
    rank: int
    world: int
    fingerprint: str

    @property
    def eos_id(self) -> int | None:
        """The delimiter of documents, if they have one."""
        return self.corpus.eos_id

    @functools.cached_property
    def _bounds(self) -> tuple[int, int]:
        """The first document, and the one after the last, as the core cuts them."""
        return self.corpus.cut(self.rank, self.world), self.corpus.cut(self.rank + 1, self.world)

    @functools.cached_property
    def document_starts(self) -> npt.NDArray[np.uint64]:
        """Where documents start, counted from the first one's start, and the number of tokens."""
        first, last = self._bounds
        starts = self.corpus.document_starts[first : last + 1]
        moved: npt.NDArray[np.uint64] = starts - starts[0]
        return moved

    @property
    def num_tokens(self) -> int:
        """Tokens of the shard."""
        return int(self.document_starts[-1])

    def tokens(self, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
        """The shard's tokens ``start .. stop``."""
        base = int(self.corpus.document_starts[self._bounds[0]])
        return self.corpus.tokens(base + start, base + (self.num_tokens if stop is None else stop))


def joint_name(fingerprints: Iterable[str]) -> str:
    """What a sample of all these corpora says it is of: the one's fingerprint, or a hash of several."""
    each = sorted(set(fingerprints))
    return each[0] if len(each) == 1 else fingerprint_bytes("\n".join(each).encode())


def corpora_of(metadata: Mapping[str, Any]) -> list[str]:
    """The fingerprints of the corpora that keys with this ``metadata`` were mined from; empty where they do not say."""
    corpora = metadata.get("corpora")
    if corpora is None:
        corpora = [(metadata.get("corpus") or {}).get("fingerprint")]
    return [str(fingerprint) for fingerprint in corpora if fingerprint]


def corpora_of_all(metadata: Iterable[Mapping[str, Any]]) -> list[str]:
    """The fingerprints of the corpora of all key sets with these ``metadata``; empty where one does not say."""
    mined = [corpora_of(each) for each in metadata]
    return sorted({fingerprint for each in mined for fingerprint in each}) if all(mined) else []


def sample_path(keys: str | os.PathLike[str]) -> Path:
    """Where the sample of a key set's file lies."""
    path = Path(keys)
    return path.with_name(path.name + SAMPLE_SUFFIX)


def write_sample(
    corpus: "Corpus | Shard", keys: str | os.PathLike[str], *, progress: Progress | bool | None = None
) -> Path:
    """Writes the sample of ``corpus`` beside the file of the keys, or the run file, that was mined from it.

    Args:
        corpus: the documents, or those of one rank.
        keys: the key set's file, or the run file.
        progress: as for :meth:`CorpusSample.of`.

    Raises:
        StorageError: the disk refused.
    """
    path = sample_path(keys)
    write_beside(path, CorpusSample.of(corpus, progress=progress).to_bytes())
    return path


def join_samples(sources: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str], corpus: str) -> Path | None:
    """Writes beside ``out`` the sample of all that its ``sources`` were mined from, by the samples beside these.

    Args:
        sources: the files that ``out`` was made of: run files, or key sets.
        out: a run file, or a key set.
        corpus: what the sample is of (`joint_name`).

    Returns:
        Where it is; None, and nothing is left there, where a source has no sample.

    Raises:
        FormatError: a sample is damaged.
        StorageError: the disk refused.
    """
    path, each = sample_path(out), samples_beside(sources)
    if not each:
        with storage_errors(path, "cannot remove the sample of other keys; remove it"):
            path.unlink(missing_ok=True)
        return None
    joint = CorpusSample.joint(each, corpus)
    write_beside(path, joint.to_bytes())
    return path


def samples_beside(sources: Iterable[str | os.PathLike[str]]) -> list[CorpusSample]:
    """The samples beside run files or key sets; none at all where one of them has none.

    Raises:
        FormatError: a sample is damaged.
    """
    beside = [sample_path(source) for source in sources]
    return [CorpusSample.open(each) for each in beside] if all(each.is_file() for each in beside) else []


def sample_of(keys: KeySet) -> CorpusSample | None:
    """The sample of what keys were mined from, made with them or beside their file; of a stack, that of all layers.

    Returns:
        None where there is none, or one of another corpus.

    Raises:
        FormatError: it is damaged.
    """
    if (layers := getattr(keys, "layers", None)) is not None:
        return joint_sample(layers)
    path = sample_path(keys.path or "keys")
    if keys.sample is not None:
        found = CorpusSample.of_bytes(keys.sample, path)
    elif keys.path is not None and path.is_file():
        found = CorpusSample.open(path)
    else:
        return None
    mined = corpora_of(keys.metadata)
    return found if mined and found.corpus == joint_name(mined) else None


def joint_sample(sets: Sequence[KeySet]) -> CorpusSample | None:
    """The sample of all that ``sets`` were mined from; None where one has none; raises as `sample_of`."""
    samples = [found for keys in sets if (found := sample_of(keys)) is not None]
    if not samples or len(samples) < len(sets):
        return None
    return CorpusSample.joint(samples, joint_name(corpora_of_all(keys.metadata for keys in sets)))


def _smallest(known: Hashes, found: Hashes) -> Hashes:
    """The `MOST` smallest of both, ascending, each once."""
    found = found[found <= np.uint64(_most(known))]
    return distinct(np.concatenate([known, found]))[:MOST]


def _most(known: Hashes) -> int:
    """The largest hash that a sample with these says something of: of a full one its last."""
    return int(known[-1]) if len(known) == MOST else ALL


def _packed(hashes: Hashes) -> str:
    return base64.b64encode(hashes.astype("<u8").tobytes()).decode()


def _unpacked(text: str) -> Hashes:
    return np.frombuffer(base64.b64decode(text, validate=True), "<u8").astype(np.uint64)
