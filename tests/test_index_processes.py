"""Threads, processes, pickles: the same rows, and no hang."""

import multiprocessing
import pickle
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from index_cases import small_set
from memgraft import NgramIndex
from memgraft.errors import ArgumentError, FingerprintError

TOKENS = np.random.default_rng(7).integers(0, 49, (4, 20_000))


def answer(index: NgramIndex) -> bytes:
    rows, orders = index.lookup(TOKENS, threads=2)
    return rows.tobytes() + orders.tobytes()


@pytest.fixture
def opened(tmp_path) -> NgramIndex:
    NgramIndex.build(small_set(2000)).save(tmp_path / "index.mgi")
    return NgramIndex.open(tmp_path / "index.mgi")


def test_eight_threads_agree(opened):
    want = answer(opened)
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(answer, [opened] * 24)) == {want}


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes_agree_after_parallel_use_in_the_parent(opened, method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    want = answer(opened)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork in a process that has had threads: the point here
        with multiprocessing.get_context(method).Pool(4) as pool:
            assert set(pool.map_async(answer, [opened] * 8).get(timeout=120)) == {want}
    assert answer(opened) == want


def test_pickles_by_path_and_fingerprint(opened, tmp_path):
    blob = pickle.dumps(opened)
    assert len(blob) < 500
    twin = pickle.loads(blob)
    assert (twin.fingerprint, twin.path) == (opened.fingerprint, opened.path)
    assert answer(twin) == answer(opened)
    NgramIndex.build(small_set(seed=9)).save(tmp_path / "index.mgi")
    with pytest.raises(FingerprintError, match="was replaced since it was pickled"):
        pickle.loads(blob)
    with pytest.raises(ArgumentError, match="save"):
        pickle.dumps(NgramIndex.build(small_set()))


def test_the_interpreter_runs_while_a_lookup_does():
    index = NgramIndex.build(small_set(2000))
    tokens = np.random.default_rng(0).integers(0, 49, 6_000_000).astype(np.uint32)
    out = np.empty(tokens.shape, np.int32), np.empty(tokens.shape, np.uint8)
    spans: list[tuple[float, float]] = []
    ticks: list[float] = []
    stop = threading.Event()

    def tick() -> None:
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    ticker = threading.Thread(target=tick)
    ticker.start()
    for _ in range(5):
        begin = time.perf_counter()
        index.lookup(tokens, out=out, threads=1)
        spans.append((begin, time.perf_counter()))
    stop.set()
    ticker.join()
    # Were the interpreter held, no tick could fall into the middle of a lookup (the copy of the ids is at its start).
    inside = [
        sum(begin + 0.5 * (end - begin) < tick < begin + 0.95 * (end - begin) for tick in ticks) for begin, end in spans
    ]
    assert sum(inside) >= 3, (inside, spans)


def test_out_in_use_is_refused_in_another_thread():
    index = NgramIndex.build(small_set(2000))
    tokens = np.random.default_rng(0).integers(0, 49, 6_000_000).astype(np.uint32)
    rows, orders = np.empty(tokens.shape, np.int32), np.empty(tokens.shape, np.uint8)
    refused: list[str] = []
    stop = threading.Event()

    def intrude() -> None:
        other = np.empty(tokens.shape, np.uint8)
        while not stop.is_set():
            try:
                index.lookup(tokens[:1], out=(rows[:1], other[:1]))
            except ArgumentError as error:
                refused.append(str(error))
            time.sleep(0.0005)

    intruder = threading.Thread(target=intrude)
    intruder.start()
    for _ in range(5):
        try:
            index.lookup(tokens, out=(rows, orders), threads=1)
        except ArgumentError as error:
            refused.append(str(error))
    stop.set()
    intruder.join()
    assert refused
    assert all("nobody else is using" in message for message in refused)
