import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import memgraft
from memgraft.corpus import CorpusWriter
from memgraft.errors import ArgumentError, FingerprintError, TokenError


def make_corpus(folder, documents, **options):
    with CorpusWriter(folder / "corpus", **{"vocab_size": 9, **options}) as writer:
        for document in documents:
            writer.add(np.array(document, np.uint32))
        return memgraft.Corpus.open(writer.finish())


def longest(document, end, keys):
    for order in range(min(end + 1, 16), 0, -1):
        key = tuple(document[end + 1 - order : end + 1])
        if key in keys:
            return key
    return None


@settings(deadline=None, max_examples=80)
@given(
    documents=st.lists(st.lists(st.integers(0, 3), max_size=12), min_size=1, max_size=6).filter(any),
    keys=st.sets(st.lists(st.integers(0, 3), min_size=1, max_size=5).map(tuple), min_size=1, max_size=12),
    block=st.integers(1, 9),
)
def test_coverage_is_what_a_walk_finds(tmp_path_factory, documents, keys, block):
    corpus = make_corpus(tmp_path_factory.mktemp("c"), documents)
    index = memgraft.NgramIndex.build(memgraft.KeySet.from_keys(keys, vocab_size=9))
    found = memgraft.coverage(index, corpus, block_tokens=block)
    matches = [longest(document, end, keys) for document in documents for end in range(len(document))]
    hits = [match for match in matches if match]
    assert found["positions"] == len(matches)
    assert found["misses"] == len(matches) - len(hits)
    assert found["fallback_share"] == pytest.approx(1 - len(hits) / len(matches))
    assert found["coverage"] == pytest.approx(len(hits) / len(matches))
    assert found["hits"] == {order: sum(len(key) == order for key in hits) for order in index.orders}
    assert found["unique_rows"] == len(set(hits))
    assert found["backoff_share"] == pytest.approx(sum(len(key) < index.max_order for key in hits) / len(matches))
    assert found["mined_from_it"] is None
    assert found["domains"] == {}


@pytest.mark.parametrize("block", [3, 1 << 20])
def test_domains_are_what_their_documents_alone_give(tmp_path, block):
    rng = np.random.default_rng(1)
    documents = [rng.integers(0, 4, size).tolist() for size in (5, 0, 7, 1, 0, 0, 9, 3, 0)]
    names = ["code", "code", "books", "code", "none", "books", "books", "code", "web"]
    index = memgraft.NgramIndex.build(memgraft.KeySet.from_keys([(1,), (2, 1), (3, 3)], vocab_size=9))
    found = memgraft.coverage(index, make_corpus(tmp_path, documents), domains=names, block_tokens=block)
    assert list(found["domains"]) == ["books", "code", "none", "web"]
    for name in ("books", "code"):
        (tmp_path / name).mkdir()
        some = [document for document, label in zip(documents, names, strict=True) if label == name]
        alone = memgraft.coverage(index, make_corpus(tmp_path / name, some))
        assert found["domains"][name] == {key: alone[key] for key in found["domains"][name]}
    assert found["domains"]["web"]["positions"] == 0
    assert sum(part["positions"] for part in found["domains"].values()) == found["positions"]
    with pytest.raises(ArgumentError, match="a name for each of the 9 documents, got 2"):
        memgraft.coverage(index, memgraft.Corpus.open(tmp_path / "corpus.bin"), domains=["a", "b"])


def test_coverage_of_a_mined_corpus(tmp_path):
    corpus = make_corpus(tmp_path, [[1, 2, 3, 1, 2, 3]] * 4, tokenizer="ab" * 32)
    keys = memgraft.mine(corpus)
    index = memgraft.NgramIndex.build(keys)
    calls = []
    found = memgraft.coverage(index, corpus, keys=keys, progress=lambda *call: calls.append(call))
    assert found["mined_from_it"] is True
    assert found["hits"] == {2: 4, 3: 4, 4: 12}
    assert calls == [("coverage", 24, 24)]
    other = memgraft.KeySet.from_keys([(1,)], vocab_size=9)
    with pytest.raises(FingerprintError, match="give the key set the index was built from"):
        memgraft.coverage(index, corpus, keys=other)


def test_another_tokenizer_is_refused(tmp_path):
    keys = memgraft.mine(make_corpus(tmp_path, [[1, 2, 1, 2]], tokenizer="ab" * 32))
    index = memgraft.NgramIndex.build(keys)
    corpus = make_corpus(tmp_path, [[1, 2, 1, 2]], tokenizer="cd" * 32)
    with pytest.raises(FingerprintError, match="tokenise the text with the recipient's tokenizer"):
        memgraft.coverage(index, corpus, keys=keys)


def test_tokens_outside_the_vocabulary_are_refused(tmp_path):
    index = memgraft.NgramIndex.build(memgraft.KeySet.from_keys([(1,)], vocab_size=5))
    with pytest.raises(TokenError):
        memgraft.coverage(index, make_corpus(tmp_path, [[1, 8]]))


@pytest.mark.parametrize("block", [3, 1 << 20])
def test_different_rows_of_batches(tmp_path, block):
    corpus = make_corpus(tmp_path, [[1, 1, 2, 1, 5, 2, 2]])
    index = memgraft.NgramIndex.build(memgraft.KeySet.from_keys([(1,), (2,), (3,)], vocab_size=9))
    found = memgraft.coverage(index, corpus, batches=(2, 4, 99), block_tokens=block)["unique_rows_per_token"]
    assert found == pytest.approx({2: (1 + 2 + 1 + 1) / 7, 4: (2 + 1) / 7, 99: 2 / 7})


def test_the_budget_that_would_do(tmp_path):
    from memgraft.planning import budget_for

    # Tokens as frequent as one over their rank: coverage rises with the logarithm of the budget.
    rng = np.random.default_rng(0)
    chances = 1 / np.arange(1, 4001)
    tokens = rng.choice(4000, 60_000, p=chances / chances.sum())
    corpus = make_corpus(tmp_path, [tokens], vocab_size=4000)
    some = memgraft.KeySet.from_keys([(token,) for token in range(100)], range(100, 0, -1), vocab_size=4000)
    budget = budget_for(some, corpus, 0.8)
    needed = int(np.searchsorted(np.cumsum(chances) / chances.sum(), 0.8))
    assert needed / 1.5 < budget < needed * 1.5
