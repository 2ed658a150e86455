"""Threads, processes, pickles: the same rows, and no hang."""

import multiprocessing
import pickle
import sys
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


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
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
    interval = sys.getswitchinterval()
    ran = 0
    for _ in range(5):
        called, inside = threading.Event(), threading.Event()
        other = threading.Thread(target=lambda called=called, inside=inside: (called.wait(), inside.set()))
        other.start()
        # From here on the other thread runs only while a call has given the interpreter away.
        sys.setswitchinterval(1000)
        try:
            called.set()
            index.lookup(tokens, out=out, threads=1)
            ran += inside.is_set()
        finally:
            sys.setswitchinterval(interval)
        other.join()
    assert ran


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
