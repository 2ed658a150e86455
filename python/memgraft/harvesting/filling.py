"""The donor's run over the keys: chunks are claimed, computed and written until none is left."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from memgraft.bank import BankWriter
from memgraft.harvesting.job import Job
from memgraft.harvesting.selecting import Progress
from memgraft.harvesting.speed import Note, Speed

POLL_SECONDS = 0.1


def fill(job: Job, writer: BankWriter, progress: Progress | None, note: Note | None) -> None:
    """Computes and writes chunks until none is left, here or in another process."""
    reader, speed = job.reader, Speed(writer.num_done, writer.num_rows, note)
    if progress is not None:
        progress("donor", writer.num_done, writer.num_rows)
    with ThreadPoolExecutor(1, "memgraft-write") as thread:
        writing: tuple[int, Future[None]] | None = None

        def end_writing() -> None:
            nonlocal writing
            if writing is not None:
                start, future = writing
                writing = None
                future.result()
                writer.give_back(start)
                speed.tell(writer.num_done)
                if progress is not None:
                    progress("donor", writer.num_done, writer.num_rows)

        # The disk takes a chunk while the donor computes the next one.
        for start, stop in _chunks(job, writer, end_writing):
            before = reader.num_tokens, reader.num_reused
            values = job.values(start, stop)
            speed.count(reader.num_tokens - before[0], reader.num_reused - before[1])
            end_writing()
            writing = start, thread.submit(writer.write, start, values)
        end_writing()


def _chunks(job: Job, writer: BankWriter, end_writing: Callable[[], None]) -> Iterator[tuple[int, int]]:
    """Chunks that this writer has claimed: its own share of the order first, then what others have left."""
    own = -(-writer.num_rows // job.chunk_rows) * writer.rank // writer.world_size * job.chunk_rows
    while left := job.chunks(writer):
        got_any = False
        for start, stop in [chunk for chunk in left if chunk[0] >= own] + [chunk for chunk in left if chunk[0] < own]:
            if writer.claim(start, stop):
                got_any = True
                yield start, stop
        end_writing()
        if not got_any:
            # Others are at the rest; should they die, their claims are free.
            time.sleep(POLL_SECONDS)
            writer.refresh()
