"""Room on the disk: what mining and merging are going to write, said and checked before they write any of it."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from memgraft import _core
from memgraft.arguments import refuse_paths
from memgraft.corpus import Corpus
from memgraft.errors import ArgumentError, StorageError
from memgraft.mining import options
from memgraft.mining.options import Choice

PathLike = str | os.PathLike[str]

SURE_SORTED = 0.5
"""Share of an estimate of sorted blocks without which mining does not start. The sample has blocks of 262 k tokens;
real ones have up to 64 times as many and join more, so that the estimate was 1.2 to 1.4 times what 30 M tokens of the
benches' text took. Half leaves room for text that repeats more: what fits is not refused."""
SURE_MERGED = 0.5
"""Share of the largest of what is merged without which a merge does not start: it holds all keys of that one. It is as
large as all together where they share no n-gram, and one that is stopped by a full disk goes on where it was."""

MERGED = "merged.records"
"""What an unfinished merge is called in its folder."""


@dataclass(frozen=True, kw_only=True)
class SpillPlan:
    """What mining, or a merge, is going to write to a folder."""

    folder: str
    bytes: int
    """Expected bytes at a time; 0 where nothing is written, as where the corpus fits the memory. Rather too many, since
    records of n-grams that recur are joined, so that large blocks take less than the sample says."""
    least: int
    """Bytes that it takes by the most cautious guess: where fewer are free, it does not start. Half of the expected
    ones, with a sketch half of those that recur in the sample; half of the largest of what is merged."""
    free: int | None
    """Bytes free there; None where the folder cannot be asked."""
    bytes_per_token: float = 0.0
    """Of the sample, for the longest order mined; 0 where none was sorted: of a corpus that fits the memory, and of a
    merge, which goes by the sizes of its parts."""
    by_order: Mapping[int, float] = field(default_factory=dict, hash=False)
    """Bytes a token by longest order, from 1 to that mined; where :func:`plan_spill` was asked for them."""
    what: str = "what outgrows the memory"
    """What the bytes are for."""
    way_out: str = "give another temporary=, more memory=, or sketch=True"
    """What helps where they do not fit."""

    def check(self) -> None:
        """Refuses where too little is free.

        Raises:
            StorageError: fewer bytes are free than are needed at least.
        """
        if self.free is not None and self.least > self.free:
            rate = f" ({self.bytes_per_token:.1f} a token)" if self.bytes_per_token else ""
            raise StorageError(
                f"{self.folder}: expected about {self.bytes:,} bytes free for {self.what}{rate}, "
                f"at least {self.least:,}, found {self.free:,}; {self.way_out}"
            )


def plan_spill(
    corpus: Corpus,
    orders: Sequence[int] = (2, 3, 4),
    *,
    memory: int | str = "4GiB",
    sketch: bool = False,
    reserved: Sequence[int] = (),
    vocab_size: int | None = None,
    temporary: PathLike | None = None,
    threads: int | None = None,
    by_order: bool = False,
) -> SpillPlan:
    """Sorts a sample of the corpus and says how much :func:`mine` will write to ``temporary``.

    Args:
        corpus: as for :func:`mine`.
        orders: see there.
        memory: see there.
        sketch: see there.
        reserved: see there.
        vocab_size: see there.
        temporary: see there.
        threads: see there.
        by_order: also sorts the sample for each shorter longest order, and where the corpus fits the memory. A part
            takes as many bytes a token with any memory, and twice as many while it is made.

    Raises:
        ArgumentError: as :func:`mine`.
    """
    refuse_paths(corpus=corpus)
    chosen = options.choice(orders, None, 2 if sketch else 1)
    vocab_size, kept_out = options.vocabulary(corpus, vocab_size, reserved)
    plan = plan_mining(
        corpus, chosen, vocab_size, kept_out, memory=memory, sketch=sketch, temporary=temporary, threads=threads
    )
    if not by_order:
        return plan
    used = options.means(memory, temporary, threads)
    rates = {
        order: _rate(corpus._core, options.choice((order,), None, 1), vocab_size, kept_out, used, always=True)[0]
        for order in range(1, max(chosen.budgets) + 1)
    }
    return replace(plan, by_order=rates, bytes_per_token=rates[max(rates)])


def plan_mining(
    corpus: Corpus,
    chosen: Choice,
    vocab_size: int,
    reserved: Sequence[int],
    *,
    memory: int | str,
    sketch: bool,
    temporary: PathLike | None,
    threads: int | None,
) -> SpillPlan:
    """What mining in one process spills. A corpus that fits the memory is not looked at.

    With a sketch the estimate stays that without one, since nobody knows before the first pass what it leaves out. What
    recurs in the sample is spilled for sure, so that alone is needed at least.
    """
    used = options.means(memory, temporary, threads)
    each, copies = _rate(corpus._core, chosen, vocab_size, reserved, used)
    surely = each
    if sketch and copies:
        sketched = options.means(memory, temporary, threads, sketch=True)
        surely, _ = _rate(corpus._core, chosen, vocab_size, reserved, sketched)
    num_tokens = corpus.num_tokens if copies else 0
    folder = tempfile.gettempdir() if temporary is None else os.fspath(temporary)
    plan = SpillPlan(
        folder=folder,
        bytes=int(each * num_tokens * copies),
        least=int(SURE_SORTED * surely * num_tokens),
        free=_free(folder),
        bytes_per_token=each,
    )
    return replace(plan, way_out="give another temporary=, or more memory=") if sketch else plan


def plan_part(
    corpus: Corpus,
    out: PathLike,
    orders: Sequence[int],
    *,
    rank: int = 0,
    world: int = 1,
    apart: bool = False,
    memory: int | str = "4GiB",
    reserved: Sequence[int] = (),
    vocab_size: int | None = None,
    threads: int | None = None,
) -> SpillPlan:
    """What :func:`mine_part` writes: blocks, and the part that they are merged into before they are removed.

    What an unfinished run has left of them counts as there. Nothing is written where the part is there.

    Raises:
        ArgumentError: as :func:`mine_part`.
    """
    refuse_paths(corpus=corpus)
    if not 0 <= rank < options.positive("world", world):
        raise ArgumentError(f"rank: expected 0 to {world - 1}, got {rank}")
    folder = os.fspath(Path(out).absolute().parent)
    what = "blocks and the part that they are merged into"
    way_out = "free some space, choose another out, or cut the corpus into more parts"
    if Path(out).exists():
        return SpillPlan(folder=folder, bytes=0, least=0, free=_free(folder), what=what, way_out=way_out)
    vocab_size, kept_out = options.vocabulary(corpus, vocab_size, reserved)
    used = options.means(memory, folder, threads)
    chosen = options.choice((max(options.budgets_by_order(orders, None)),), None, 1)
    core = corpus._core
    shard = core if apart else core.slice(core.cut(rank, world), core.cut(rank + 1, world))
    each, _ = _rate(shard, chosen, vocab_size, kept_out, used, always=True)
    blocks, covered = _blocks(out)
    more = each * max(0, shard.num_tokens - covered)
    merged = sum(_sizes([Path(f"{os.fspath(out)}.partial") / MERGED]))
    # Of what is merged, the largest block is not known before it is there.
    largest = max(blocks, default=0)
    return SpillPlan(
        folder=folder,
        bytes=int(more) + max(0, int(sum(blocks) + more) - merged),
        least=int(SURE_SORTED * more) + max(0, int(SURE_MERGED * largest) - merged),
        free=_free(folder),
        bytes_per_token=each,
        what=what,
        way_out=way_out,
    )


def plan_merge(
    parts: Sequence[PathLike],
    out: PathLike,
    *,
    part: tuple[int, int] | None = None,
    memory: int | str = "4GiB",
    temporary: PathLike | None = None,
    threads: int | None = None,
) -> list[SpillPlan]:
    """What :func:`merge_parts` writes: at most the bytes of the parts, and those of intermediate merges of very many.

    Of a range, those that lie in it. Less what an unfinished merge has left; nothing where the merge is there. One plan
    for each file system.

    Raises:
        ArgumentError: there is no such range.
        FingerprintError: parts that do not belong together, of which a range is to be merged.
        FormatError: one of those is damaged.
        StorageError: one of those cannot be read.
    """
    if Path(out).exists():
        return []
    sizes = _sizes(parts)
    surely = sizes
    if part is not None and sizes:
        surely, sizes = map(list, zip(*_core.range_bytes(parts, part), strict=True))
    if not sizes:
        return []
    folder = os.fspath(Path(out).absolute().parent)
    left = sum(_sizes([Path(f"{os.fspath(out)}.partial") / MERGED]))
    merged = SpillPlan(
        folder=folder,
        bytes=max(0, sum(sizes) - left),
        least=max(0, int(SURE_MERGED * max(surely)) - left),
        free=_free(folder),
        what=f"the merge of {len(sizes)} parts",
        way_out="free some space, choose another out, or merge ranges with part= on several disks",
    )
    most, _ = options.means(memory, temporary, threads).most_parts
    between = _intermediate(sizes, surely, most, temporary)
    if between is None:
        return [merged]
    if not _same_disk(between.folder, folder):
        return [merged, between]
    # Both lie there at once.
    both = replace(merged, what=f"{merged.what} and {between.what}")
    return [replace(both, bytes=merged.bytes + between.bytes, least=merged.least + between.least)]


def plan_selection(
    parts: Sequence[PathLike],
    *,
    memory: int | str = "4GiB",
    temporary: PathLike | None = None,
    threads: int | None = None,
) -> list[SpillPlan]:
    """What :func:`select_parts` writes: nothing, but for intermediate merges of more parts than it reads at a time."""
    sizes = _sizes(parts)
    _, most = options.means(memory, temporary, threads).most_parts
    between = _intermediate(sizes, sizes, most, temporary)
    return [] if between is None else [between]


def _rate(
    corpus: _core.Corpus,
    chosen: Choice,
    vocab_size: int,
    reserved: Sequence[int],
    used: _core.Means,
    *,
    always: bool = False,
) -> tuple[float, int]:
    """Bytes a token of a sample, and how often they lie on the disk at once.

    Both are 0 where nothing is spilled; the former is not, if it is asked for ``always``.
    """
    sampled, size, copies = _core.estimate_spill(corpus, chosen.core, vocab_size, reserved, used, always)
    return size / max(sampled, 1), copies


def _intermediate(
    sizes: Sequence[int], surely: Sequence[int], most: int, temporary: PathLike | None
) -> SpillPlan | None:
    num_parts = len(sizes)
    if num_parts <= most:
        return None
    folder = tempfile.gettempdir() if temporary is None else os.fspath(temporary)
    return SpillPlan(
        folder=folder,
        bytes=sum(sizes),
        least=int(SURE_MERGED * max(surely)),
        free=_free(folder),
        what=f"intermediate merges of {num_parts} parts, of which {most} are read at a time",
        way_out="give another temporary=, more memory= or fewer threads=, or merge some of the parts first",
    )


def _blocks(out: PathLike) -> tuple[list[int], int]:
    """Bytes of the blocks that an unfinished run has left beside ``out``, and the tokens that they are of."""
    sizes, covered = [], 0
    for path in Path(f"{os.fspath(out)}.partial").glob("*.block"):
        # Named by positions: from, to, and of blocks how many it was merged of.
        if re.fullmatch(r"\d+-\d+(-\d+)?", path.stem):
            start, end, *_ = map(int, path.stem.split("-"))
            sizes += _sizes([path])
            covered += end - start
    return sizes, covered


def _sizes(paths: Iterable[PathLike]) -> list[int]:
    """Bytes of those files that are there; whoever reads them says what is wrong with the others."""
    found = []
    for path in paths:
        try:
            found.append(os.stat(path).st_size)
        except OSError:
            continue
    return found


def _there(folder: str) -> Path:
    """The folder, or of one that is still to be made the nearest above it."""
    path = Path(folder).absolute()
    return next((each for each in (path, *path.parents) if each.exists()), path)


def _free(folder: str) -> int | None:
    try:
        return shutil.disk_usage(_there(folder)).free
    except OSError:
        return None  # the mining itself says what is wrong with the folder


def _same_disk(one: str, other: str) -> bool:
    try:
        return _there(one).stat().st_dev == _there(other).stat().st_dev
    except OSError:
        return False
