"""Room on the disk: what mining and merging are going to write, said and checked before they write any of it."""

import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from memgraft import _core
from memgraft.arguments import refuse_paths
from memgraft.corpus import Corpus
from memgraft.errors import StorageError
from memgraft.mining import options
from memgraft.mining.options import Choice

PathLike = str | os.PathLike[str]

SURE_SORTED = 0.5
"""Share of an estimate of sorted blocks without which mining does not start. The sample has blocks of 262 k tokens;
real ones have up to 64 times as many and join more, so that the estimate was 1.2 to 1.4 times what 30 M tokens of the
benches' text took. Half leaves room for text that repeats more: what fits is not refused."""
SURE_MERGED = 0.25
"""Share of what is merged without which a merge does not start. A merge is as large as its parts where they share no
n-gram and joins more the more they repeat each other; one that is stopped by a full disk goes on where it was."""

MERGED = "merged.records"
"""What an unfinished merge is called in its folder."""


@dataclass(frozen=True, kw_only=True)
class SpillPlan:
    """What mining, or a merge, is going to write to a folder."""

    folder: str
    bytes: int
    """Expected bytes; 0 where nothing is written, as where the corpus fits the memory. Rather too many: records of
    n-grams that recur are joined, so that large blocks take less than the sample says."""
    least: int
    """Bytes that it takes by the most cautious guess: where fewer are free, it does not start. Half of the expected
    ones, with a sketch half of those that recur in the sample; a quarter of what is merged."""
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
        order: _rate(corpus, options.choice((order,), None, 1), vocab_size, kept_out, used, always=True)[0]
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
    each, spills = _rate(corpus, chosen, vocab_size, reserved, used)
    surely = each
    if sketch and spills:
        surely, _ = _rate(corpus, chosen, vocab_size, reserved, options.means(memory, temporary, threads, sketch=True))
    num_tokens = corpus.num_tokens if spills else 0
    folder = tempfile.gettempdir() if temporary is None else os.fspath(temporary)
    plan = SpillPlan(
        folder=folder,
        bytes=int(each * num_tokens),
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
    folder = os.fspath(Path(out).absolute().parent)
    what = "blocks and the part that they are merged into"
    way_out = "free some space, choose another out, or cut the corpus into more parts"
    if Path(out).exists():
        return SpillPlan(folder=folder, bytes=0, least=0, free=_free(folder), what=what, way_out=way_out)
    vocab_size, kept_out = options.vocabulary(corpus, vocab_size, reserved)
    used = options.means(memory, folder, threads)
    chosen = options.choice((max(options.budgets_by_order(orders, None)),), None, 1)
    num_tokens = corpus.num_tokens if apart else _start(corpus, rank + 1, world) - _start(corpus, rank, world)
    each, _ = _rate(corpus, chosen, vocab_size, kept_out, used, always=True)
    size = each * num_tokens
    blocks, merged = _left(out, "*.block"), _left(out, MERGED)
    return SpillPlan(
        folder=folder,
        bytes=max(0, int(2 * size) - blocks - merged),
        least=max(0, int(SURE_SORTED * size) - blocks) + max(0, int(SURE_MERGED * size) - merged),
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

    Less what an unfinished merge has left; nothing where the merge is there. One plan for each file system.
    """
    sizes = _sizes(parts)
    if not sizes or Path(out).exists():
        return []
    # Ranges of first tokens are cut to about equal bytes.
    share = sum(sizes) if part is None else sum(sizes) // max(1, part[1])
    surely = max(SURE_MERGED * share, SURE_SORTED * max(sizes) if part is None else 0)
    folder = os.fspath(Path(out).absolute().parent)
    left = _left(out, MERGED)
    merged = SpillPlan(
        folder=folder,
        bytes=max(0, share - left),
        least=max(0, int(surely) - left),
        free=_free(folder),
        what=f"the merge of {len(sizes)} parts",
        way_out="free some space, choose another out, or merge ranges with part= on several disks",
    )
    most, _ = options.means(memory, temporary, threads).most_parts
    between = _intermediate(len(sizes), share, most, temporary)
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
    between = _intermediate(len(sizes), sum(sizes), most, temporary)
    return [] if between is None else [between]


def _rate(
    corpus: Corpus,
    chosen: Choice,
    vocab_size: int,
    reserved: Sequence[int],
    used: _core.Means,
    *,
    always: bool = False,
) -> tuple[float, bool]:
    """Bytes a token of a sample, and whether mining spills; 0 where it does not, unless ``always``."""
    sampled, size, spills = _core.estimate_spill(corpus._core, chosen.core, vocab_size, reserved, used, always)
    return size / max(sampled, 1), spills


def _intermediate(num_parts: int, size: int, most: int, temporary: PathLike | None) -> SpillPlan | None:
    if num_parts <= most:
        return None
    folder = tempfile.gettempdir() if temporary is None else os.fspath(temporary)
    return SpillPlan(
        folder=folder,
        bytes=size,
        least=int(SURE_MERGED * size),
        free=_free(folder),
        what=f"intermediate merges of {num_parts} parts, of which {most} are read at a time",
        way_out="give another temporary=, more memory= or fewer threads=, or merge some of the parts first",
    )


def _start(corpus: Corpus, rank: int, world: int) -> int:
    """The position at which the documents of a rank begin."""
    document = corpus.cut(rank, world)
    return corpus._core.document(document)[0] if document < corpus.num_documents else corpus.num_tokens


def _left(out: PathLike, names: str) -> int:
    """Bytes of the files that an unfinished run has left beside ``out`` under such names."""
    return sum(_sizes(Path(f"{os.fspath(out)}.partial").glob(names)))


def _sizes(paths: Iterable[PathLike]) -> list[int]:
    """Bytes of those files that are there; whoever reads them says what is wrong with the others."""
    found = []
    for path in paths:
        try:
            found.append(os.stat(path).st_size)
        except OSError:
            continue
    return found


def _free(folder: str) -> int | None:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None  # the mining itself says what is wrong with the folder


def _same_disk(one: str, other: str) -> bool:
    try:
        return os.stat(one).st_dev == os.stat(other).st_dev
    except OSError:
        return False
