"""Blocks of a corpus against a walk over every document and position."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from memgraft.corpus.blocks import documents_in_blocks, windows_with_lead


class Stream:
    def __init__(self, sizes):
        self.document_starts = np.cumsum([0, *sizes]).astype(np.uint64)
        self.num_tokens = sum(sizes)

    def tokens(self, start=0, stop=None):
        return np.arange(self.num_tokens, dtype=np.uint32)[start:stop]


sizes = st.lists(st.integers(0, 9), min_size=1, max_size=12)


@given(sizes, st.integers(1, 20))
def test_blocks_are_whole_documents_as_many_as_fit(sizes, block):
    starts = Stream(sizes).document_starts.tolist()
    number = 0
    for edges in documents_in_blocks(Stream(sizes), block):
        count = len(edges) - 1
        assert edges.tolist() == starts[number : number + count + 1]
        assert count == 1 or edges[-1] - edges[0] <= block
        number += count
        assert number == len(sizes) or starts[number + 1] - edges[0] > block, "the next one would have fitted"
    assert number == len(sizes)


@given(sizes, st.integers(1, 20), st.integers(0, 5), st.integers(0, 2), st.integers(0, 3))
def test_windows_meet_and_know_their_documents(sizes, size, lead, ahead, begin):
    stream = Stream(sizes)
    of = np.repeat(np.arange(len(sizes)), sizes)
    at = begin
    for window in windows_with_lead(stream, lead, size, begin=begin, ahead=ahead):
        assert (window.start, window.first) == (at, max(0, at - lead))
        assert window.stop == min(at + size + ahead, stream.num_tokens)
        documents = of[window.first : window.stop]
        np.testing.assert_array_equal(window.documents(), documents)
        changes = np.flatnonzero(np.diff(documents)) + 1
        assert window.edges.tolist() == [0, *changes, window.stop - window.first]
        at += size
    assert at >= stream.num_tokens
