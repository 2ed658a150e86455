"""One decode step of 8 sequences: longest match, then the rows' values, warm. Microseconds a step.

A grafted model looks the last tokens up again, from what its cache remembers; `advance` is for loops of one's own.
"""

import shutil
from typing import Any

import numpy as np
import torch
from banks import make_bank, raw_values
from contest import Contender, check_equal, contest
from settings import Settings, main

from memgraft import KeySet
from memgraft.integrations.transformers.memories import look_up, stage

SEQUENCES, STEPS = 8, 1000


def group(settings: Settings) -> dict[str, Any]:
    row_bytes, num_rows = (1024, 20_000) if settings.quick else (4096, 250_000)
    keys = KeySet.open(settings.keys)
    bank = make_bank(settings.scratch_path / "decode", keys.select(np.arange(min(num_rows, len(keys)))), row_bytes)
    bank.warm()
    index, raw = bank.index, np.array(raw_values(bank))
    tokens = np.fromfile(f"{settings.corpus}.bin", dtype=np.uint16)[-SEQUENCES * STEPS :]
    columns = np.ascontiguousarray(tokens.reshape(SEQUENCES, STEPS).T)
    out = np.empty((SEQUENCES, 1, bank.value_dim), np.uint16)
    found = np.empty(SEQUENCES, np.int32), np.empty(SEQUENCES, np.uint8)
    width = max(keys.orders)

    def advance_and_stage() -> None:
        states = index.start(SEQUENCES)
        for column in columns:
            rows, orders = index.advance(states, column, out=found)
            bank.stage(rows=rows, orders=orders, out=out, threads=1)

    def advance_alone() -> None:
        states = index.start(SEQUENCES)
        for column in columns:
            index.advance(states, column, out=found)

    def lookup_of_history() -> None:
        for at in range(width, STEPS + 1):
            rows, _ = index.lookup(columns[at - width : at].T, threads=1)
            bank.stage(rows=rows[:, -1], out=out, threads=1)

    windows = torch.from_numpy(columns.astype(np.int64))
    segments = torch.zeros(SEQUENCES, width, dtype=torch.int64)

    def step_of_a_model() -> None:
        for at in range(width, STEPS + 1):
            found = look_up(bank, windows[at - width : at].T, segments, 1, bank.vocab_size)
            stage(found, bank).floats(torch.bfloat16)

    expected, _ = index.lookup(tokens.reshape(SEQUENCES, STEPS))
    states = index.start(SEQUENCES)
    for at, column in enumerate(columns):
        rows, orders = index.advance(states, column, out=found)
        check_equal("advance", expected[:, at], rows)
        staged = bank.stage(rows=rows, orders=orders, out=out, threads=1)
        hit = staged.inverse >= 0
        check_equal("stage", raw[rows[hit]], staged.values[staged.inverse[hit], 0])
        if at >= width:
            rows, _ = index.lookup(columns[at + 1 - width : at + 1].T, threads=1)
            check_equal("lookup of the last tokens", expected[:, at], rows[:, -1])
    timings = contest(
        [
            Contender("advance + stage", STEPS, advance_and_stage),
            Contender("advance", STEPS, advance_alone),
            Contender(f"lookup of the last {width} tokens + stage", STEPS + 1 - width, lookup_of_history),
            Contender("a grafted model's own step", STEPS + 1 - width, step_of_a_model),
        ],
        settings.rounds,
    )
    shutil.rmtree(bank.path)
    return {"unit": "step", "sequences": SEQUENCES, "row_bytes": row_bytes, "timings": timings}


if __name__ == "__main__":
    main(group)
