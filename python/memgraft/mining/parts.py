"""Mining in parts, by several processes or machines: each leaves a run file, and a merge counts like one process."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from memgraft import _core
from memgraft.arguments import refuse_paths, refuse_text
from memgraft.corpus import Corpus, CorpusSample, Shard, join_samples, joint_name, write_sample
from memgraft.corpus.sample import sample_path, samples_beside
from memgraft.errors import ArgumentError
from memgraft.keyset import KeySet
from memgraft.mining import options, room
from memgraft.mining.miner import finished
from memgraft.mining.options import Keep, Policy, Progress
from memgraft.progress import callback

PathLike = str | os.PathLike[str]


class RunFacts(TypedDict):
    """What a run file says of itself."""

    vocab_size: int
    """Tokens are below this."""
    max_order: int
    """The longest n-gram."""
    reserved: list[int]
    """Tokens that no n-gram holds."""
    tokens: list[int]
    """First tokens that its n-grams may begin with: from, and up to."""
    num_records: int
    """Sorted records."""
    num_bytes: int
    """Size of the file."""
    world: int
    """Ranks that the corpora were shared among."""
    shards: list[dict[str, Any]]
    """Of each rank's documents: ``rank``, ``fingerprint``, ``num_tokens``, ``num_documents``."""
    settings: dict[str, Any]
    """What it was mined with."""


class RunSet:
    """A run file: the sorted n-grams of some whole documents, and what they are of. Make one with :func:`mine_part`."""

    def __init__(self, core: _core.RunSet) -> None:
        """Wraps the compiled run set; use :meth:`open` instead."""
        self._core = core

    @classmethod
    def open(cls, path: PathLike) -> "RunSet":
        """Reads head and tail.

        Raises:
            StorageError: the file cannot be read.
            FormatError: it is damaged, truncated, of a later version, or no run file.
        """
        return cls(_core.RunSet.open(Path(path)))

    def verify(self) -> None:
        """Checks every byte.

        Raises:
            FormatError: names what is damaged.
        """
        self._core.verify()

    @property
    def path(self) -> Path:
        """Where it is."""
        return Path(self._core.path)

    @property
    def facts(self) -> RunFacts:
        """What it holds."""
        core = self._core
        shards = [
            {"rank": rank, "fingerprint": fingerprint, "num_tokens": tokens, "num_documents": documents}
            for rank, fingerprint, tokens, documents in core.shards
        ]
        return RunFacts(
            vocab_size=core.vocab_size,
            max_order=core.max_order,
            reserved=core.reserved,
            tokens=list(core.tokens),
            num_records=core.num_records,
            num_bytes=core.num_bytes,
            world=core.world,
            shards=shards,
            settings=json.loads(core.settings),
        )

    def __repr__(self) -> str:
        """Place and size."""
        ranks = [shard[0] for shard in self._core.shards]
        return f"RunSet({self.path}, shards {ranks} of {self._core.world}, {self._core.num_records:,} records)"


def mine_part(
    corpus: Corpus,
    out: PathLike,
    orders: Sequence[int] = (2, 3, 4),
    *,
    rank: int = 0,
    world: int = 1,
    apart: bool = False,
    memory: int | str = "4GiB",
    reserved: Sequence[int] = (),
    vocab_size: int | None = None,
    threads: int | None = None,
    progress: Progress | bool | None = None,
) -> RunSet:
    """Mines the documents of one rank into a run file at ``out``, and leaves a sample of them beside it.

    The same call goes on where a killed one stopped (``<out>.partial`` holds its finished blocks), and does nothing
    where the part is there. The file's bytes depend on the documents and settings alone.

    Args:
        corpus: the whole corpus, the same on every rank; the rank takes documents that follow one another, of about
            equal tokens. With ``apart``, the rank's own corpus.
        out: the run file to write.
        orders: lengths of keys; what can be selected later ends at the longest.
        rank: which part, from 0.
        world: parts there are.
        apart: each rank has files of its own, and no rank knows those of the others.
        memory: working memory.
        reserved: as for :func:`mine`.
        vocab_size: as for :func:`mine`.
        threads: default: every core.
        progress: True for bars, or called with (phase, done, total).

    Raises:
        ArgumentError: options out of range.
        FingerprintError: ``out``, or what is left beside it, is a part of something else.
        StorageError: the files cannot be written, or there is less room than they take at least (:class:`SpillPlan`).
        TokenError: a token is not below ``vocab_size``.
    """
    refuse_paths(corpus=corpus)
    progress = callback(progress)
    wanted = options.budgets_by_order(orders, None)
    vocab_size, kept_out = options.vocabulary(corpus, vocab_size, reserved)
    if not 0 <= rank < options.positive("world", world):
        raise ArgumentError(f"rank: expected 0 to {world - 1}, got {rank}")
    split, mapping = corpus.split_facts, corpus.tokenizer_mapping
    settings = {
        "tokenizer": corpus.tokenizer,
        **({} if mapping is None else {"tokenizer_mapping": dict(mapping)}),
        "eos_id": corpus.eos_id,
        "split": None if split is None else dict(split),
        "orders": sorted(wanted),
    }
    room.plan_part(
        corpus,
        out,
        sorted(wanted),
        rank=rank,
        world=world,
        apart=apart,
        memory=memory,
        reserved=reserved,
        vocab_size=vocab_size,
        threads=threads,
    ).check()
    core = _core.mine_part(
        corpus._core,
        Path(out),
        max(wanted),
        vocab_size,
        kept_out,
        rank,
        world,
        apart,
        json.dumps(settings, sort_keys=True),
        options.means(memory, Path(out).absolute().parent, threads),
        progress,
    )
    part = RunSet(core)
    rank, world = (0, 1) if apart else (rank, world)
    sampled = Shard(corpus=corpus, rank=rank, world=world, fingerprint=_sampled(part))
    if not sample_path(out).is_file() or CorpusSample.open(sample_path(out)).corpus != sampled.fingerprint:
        write_sample(sampled, out, progress=progress)
    return part


def merge_parts(
    parts: Iterable[PathLike],
    out: PathLike,
    *,
    part: tuple[int, int] | None = None,
    memory: int | str = "4GiB",
    temporary: PathLike | None = None,
    threads: int | None = None,
    progress: Progress | bool | None = None,
) -> RunSet:
    """Merges run files, and the samples beside them, into one; goes on where a killed merge stopped.

    Args:
        parts: run files of one corpus and one setting, in any order.
        out: the run file to write.
        part: (i, n): only the i-th of n ranges of first tokens, so that n machines share the work. All must be given
            the same run files.
        memory: working memory.
        temporary: folder for intermediate merges of very many files.
        threads: for those.
        progress: True for bars, or called with (phase, done, total).

    Raises:
        FingerprintError: parts that do not belong together, or one that is there twice.
        FormatError: a part is damaged, truncated, or of a later version.
        StorageError: the file cannot be written, or there is less room than it takes at least (:class:`SpillPlan`).
    """
    refuse_text(parts=parts)
    progress = callback(progress)
    used = options.means(memory, temporary, threads)
    paths = [Path(path) for path in parts]
    for plan in room.plan_merge(paths, out, part=part, memory=memory, temporary=temporary, threads=threads):
        plan.check()
    merged = RunSet(_core.merge_parts(paths, Path(out), part, used, progress))
    join_samples(paths, out, _sampled(merged))
    return merged


def _sampled(part: RunSet) -> str:
    """What the sample beside a run file says it is of; shards of the same documents are told apart by their ranks."""
    facts = part.facts
    return joint_name(f"{shard['rank']}/{facts['world']} {shard['fingerprint']}" for shard in facts["shards"])


def select_parts(
    parts: Iterable[PathLike],
    orders: Sequence[int] | None = None,
    budget: int | Mapping[int, int] | None = 3_000_000,
    *,
    min_count: int = 2,
    policy: Policy = "shares",
    min_documents: int = 0,
    exclude: Corpus | None = None,
    exclude_from: int | None = None,
    require: Sequence[Sequence[int]] | KeySet = (),
    keep: Keep | None = None,
    memory: int | str = "4GiB",
    temporary: PathLike | None = None,
    threads: int | None = None,
    progress: Progress | bool | None = None,
) -> KeySet:
    """The keys of a corpus from its parts: the bytes that :func:`mine` gives for the whole.

    They carry the sample of the whole, where every part has one beside it, and `KeySet.save` writes it beside theirs.

    Args:
        parts: run files that hold every shard and every first token once.
        orders: lengths of keys; default: those the parts were mined with.
        budget: as the arguments that follow, as for :func:`mine`.
        min_count: see there.
        policy: see there.
        min_documents: see there.
        exclude: see there.
        exclude_from: see there.
        require: see there.
        keep: see there.
        memory: see there.
        temporary: see there.
        threads: see there.
        progress: see there.

    Raises:
        FingerprintError: parts that do not belong together, are missing, or are there twice.
        FormatError: a part is damaged, truncated, or of a later version.
        ArgumentError: options out of range.
        StorageError: there are so many parts that some are merged in ``temporary``, which has too little room.
    """
    refuse_text(parts=parts)
    progress = callback(progress)
    paths = [Path(path) for path in parts]
    if orders is None:
        if not paths:
            raise ArgumentError("parts: expected at least one run file, got none")
        orders = json.loads(_core.RunSet.open(paths[0]).settings)["orders"]
    chosen = options.choice(
        orders,
        budget,
        min_count,
        policy=policy,
        min_documents=min_documents,
        exclude=exclude,
        exclude_from=exclude_from,
        require=require,
        keep=keep,
    )
    used = options.means(memory, temporary, threads)
    for plan in room.plan_selection(paths, memory=memory, temporary=temporary, threads=threads):
        plan.check()
    samples = samples_beside(paths)
    mined, merged = _core.select_parts(paths, chosen.core, used, progress)
    settings = json.loads(merged.settings)
    corpus = {
        "fingerprint": merged.fingerprint,
        "num_tokens": merged.num_tokens,
        "num_documents": merged.num_documents,
        "eos_id": settings["eos_id"],
    }
    mapping = settings.get("tokenizer_mapping")
    keys = finished(mined, chosen, corpus, settings["tokenizer"], mapping, settings["split"])
    return keys.with_sample(CorpusSample.joint(samples, merged.fingerprint).to_bytes()) if samples else keys
