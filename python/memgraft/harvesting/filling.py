"""The donor's run over the keys: chunks are claimed, computed and written until none is left."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from memgraft.bank import BankWriter
from memgraft.bank.dtypes import value_dtype
from memgraft.data.dtypes import stored_array
from memgraft.errors import DonorError
from memgraft.harvesting.packing import IntArray
from memgraft.harvesting.readers import Reader
from memgraft.harvesting.selecting import Progress, Selection, keys_text
from memgraft.harvesting.setup import Setup
from memgraft.harvesting.speed import Note, Speed

POLL_SECONDS = 0.1


def fill(
    writer: BankWriter,
    setup: Setup,
    selection: Selection,
    reader: Reader,
    dtype: str,
    chunk_rows: int,
    progress: Progress | None,
    note: Note | None,
) -> None:
    """Computes and writes chunks until none is left, here or in another process."""
    speed = Speed(writer.num_done, writer.num_rows, note)
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
        for start, stop in _chunks(writer, chunk_rows, end_writing):
            rows = np.asarray(reader.order[start:stop])
            before = reader.num_tokens
            values = reader.values(rows)
            _refuse_strange(setup, selection, rows, values)
            speed.count(reader.num_tokens - before)
            end_writing()
            writing = start, thread.submit(writer.write, start, stored_array(values, value_dtype(dtype)))
        end_writing()


def _chunks(writer: BankWriter, chunk_rows: int, end_writing: Callable[[], None]) -> Iterator[tuple[int, int]]:
    """Chunks that this writer has claimed: its own share of the order first, then what others have left."""
    num_rows = writer.num_rows
    number = -(-num_rows // chunk_rows)
    first = number * writer.rank // writer.world_size
    left = [*range(first, number), *range(first)]
    while left:
        missing = {start // chunk_rows for a, b in writer.missing() for start in range(a, b, chunk_rows)}
        left = [chunk for chunk in left if chunk in missing]
        got_any = False
        for chunk in left:
            start, stop = chunk * chunk_rows, min((chunk + 1) * chunk_rows, num_rows)
            if writer.claim(start, stop):
                got_any = True
                yield start, stop
        end_writing()
        if left and not got_any:
            # Others are at the rest; should they die, their claims are free.
            time.sleep(POLL_SECONDS)
            writer.refresh()


def _refuse_strange(setup: Setup, selection: Selection, rows: IntArray, values: torch.Tensor) -> None:
    finite = torch.isfinite(values).flatten(1).all(1).numpy()
    if not finite.all():
        strange, donor = np.sort(rows[~finite]).tolist(), setup.donor
        raise DonorError(
            f"donor {donor.name}: states of {len(strange)} keys are not finite in {donor.compute_dtype} "
            f"({keys_text(selection, strange, setup.recipient)}); run it in another compute dtype, such as "
            "float32, or take a lower tap; what was finished before is kept"
        )
