"""Which n-grams become keys: policies, exclusion, requirement, a filter, room on the disk."""

import collections
import shutil

import numpy as np
import pytest

import memgraft
from memgraft.corpus import CorpusWriter
from memgraft.errors import ArgumentError, StorageError, TokenError
from memgraft.mining import mine_part, plan_spill, select_parts
from memgraft.mining.options import POLICIES


@pytest.fixture(scope="module")
def documents():
    rng = np.random.default_rng(1)
    return [(rng.zipf(1.5, rng.integers(1, 90)) % 40).tolist() for _ in range(150)]


def open_corpus(folder, documents, name="corpus"):
    with CorpusWriter(folder / name, vocab_size=40) as writer:
        for document in documents:
            writer.add(np.array(document, np.uint32))
        return memgraft.Corpus.open(writer.finish())


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, documents):
    return open_corpus(tmp_path_factory.mktemp("choice"), documents)


@pytest.fixture(scope="module")
def counted(documents):
    counts, frequency = collections.Counter(), collections.Counter()
    for document in documents:
        keys = [tuple(document[i : i + n]) for n in (2, 3, 4) for i in range(len(document) - n + 1)]
        counts.update(keys)
        frequency.update(set(keys))
    return counts, frequency


@pytest.mark.parametrize("policy", ["count", "documents"])
def test_orders_compete_for_one_budget(corpus, counted, policy):
    counts, frequency = counted
    first = {"count": lambda key: (-counts[key], key), "documents": lambda key: (-frequency[key], -counts[key], key)}
    frequent = [key for key in counts if counts[key] > 1 and frequency[key] >= 3]
    want = sorted(frequent, key=first[policy])[:70]
    keys = memgraft.mine(corpus, budget=70, policy=policy, min_documents=3)
    assert list(keys) == sorted(want, key=lambda key: (-counts[key], key))
    assert keys.metadata["mining"]["policy"] == policy
    assert keys.metadata["mining"]["min_documents"] == 3


def longest_matches(documents, keys):
    kept, found = set(keys), collections.Counter()
    for document in documents:
        for end in range(1, len(document) + 1):
            for order in (4, 3, 2):
                key = tuple(document[end - order : end])
                if end >= order and key in kept:
                    found[key] += 1
                    break
    return found


def test_gain_keeps_what_is_the_longest_match_most_often(corpus, documents):
    keys = memgraft.mine(corpus, budget=40, policy="gain")
    candidates = memgraft.mine(corpus, budget=160, policy="count")
    kept = list(candidates)
    while len(kept) > 40:
        earned = longest_matches(documents, kept)
        kept.remove(min(kept, key=lambda key: (earned[key], -kept.index(key))))
    assert list(keys) == kept


def test_a_key_that_longer_keys_always_cover_earns_nothing():
    keys = memgraft.KeySet.from_keys([(2, 3), (1, 2, 3), (5,)], [9, 9, 1], vocab_size=9)
    assert list(keys.select_by_gain(2)) == [(1, 2, 3), (5,)]
    assert list(keys.select_by_gain(2, require=[(2, 3)])) == [(1, 2, 3), (2, 3)]


def test_keys_of_the_evaluation_text_are_dropped_and_counted(tmp_path, corpus, counted, documents):
    text = open_corpus(tmp_path, documents[:5], "evaluation")
    seen = [(document, n) for document in documents[:5] for n in (3, 4)]
    held = {tuple(document[i : i + n]) for document, n in seen for i in range(len(document) - n + 1)}
    keys = memgraft.mine(corpus, budget=None, exclude=text, exclude_from=3)
    wanted = [key for key, count in counted[0].items() if count > 1 and key not in held]
    assert list(keys) == sorted(wanted, key=lambda key: (-counted[0][key], key))
    facts = keys.metadata["mining"]["exclude"]
    dropped = [key for key, count in counted[0].items() if count > 1 and key in held]
    by_order = {str(n): sum(len(key) == n for key in dropped) for n in (2, 3, 4)}
    assert facts == {"fingerprint": text.fingerprint, "from_order": 3, "dropped": by_order}


def test_required_keys_are_kept_and_a_filter_is_asked(corpus, counted):
    rare = min(counted[0], key=lambda key: (counted[0][key], key))
    required = [rare, (39, 39, 39, 39)]

    def even(batch):
        return batch.tokens[batch.offsets[:-1].astype(np.int64)] % 2 == 0

    keys = memgraft.mine(corpus, budget=60, policy="count", require=required, keep=even, threads=2)
    frequent = [key for key, count in counted[0].items() if count > 1 and key[0] % 2 == 0 and key not in required]
    want = [*sorted(frequent, key=lambda key: (-counted[0][key], key))[:58], *required]
    assert set(keys) == set(want)
    assert keys.count(list(keys).index(rare)) == counted[0][rare]
    assert keys.metadata["mining"]["required"] == 2


@pytest.mark.parametrize("policy", POLICIES)
def test_required_keys_fit_the_budget_or_are_refused(tmp_path, corpus, policy):
    # As many as the budget holds of these orders; as shares, as many of each order.
    required = [(1, 2), (39, 39, 39), (2, 1), (39, 38, 37)]
    given = {"orders": (2, 3), "policy": policy, "require": required}
    part = mine_part(corpus, tmp_path / "part.mgr", (2, 3)).path

    def chosen(**given):
        keys, same = memgraft.mine(corpus, **given), select_parts([part], **given)
        assert (keys.fingerprint, keys.metadata) == (same.fingerprint, same.metadata)
        return keys

    assert set(chosen(budget=4, **given)) == set(required)
    assert len(chosen(budget=6, **given)) == 6
    room = "2 keys of order 2, its share of the budget, got 3" if policy == "shares" else "4 keys of the budget, got 5"
    for work in (lambda **given: memgraft.mine(corpus, **given), lambda **given: select_parts([part], **given)):
        with pytest.raises(ArgumentError, match=rf"require: expected at most (the )?{room}; give .* or require fewer"):
            work(budget=4, **given | {"require": [*required, (7, 7)]})
    # A key that is named twice is one.
    assert set(chosen(budget=4, **given | {"require": [*required, *required]})) == set(required)


def test_required_keys_fit_the_budget_of_their_order(corpus):
    required = [(1, 2), (2, 1), (39, 39, 39)]
    assert set(memgraft.mine(corpus, (2, 3), {2: 2, 3: 1}, require=required)) == set(required)
    with pytest.raises(ArgumentError, match="at most 1 keys of order 2, its share of the budget, got 2"):
        memgraft.mine(corpus, (2, 3), {2: 1, 3: 99}, require=required)
    assert set(required) < set(memgraft.mine(corpus, (2, 3), None, require=required))


@pytest.mark.parametrize("policy", POLICIES[1:])
def test_orders_that_compete_need_no_key_each(corpus, policy):
    whole = memgraft.mine(corpus, budget=2, policy=policy)
    assert len(whole) == 2
    assert whole.metadata["mining"]["budgets"] == {"2": None, "3": None, "4": None}
    assert len(memgraft.mine(corpus, budget=1, policy=policy, require=[(39, 39, 39, 39)])) == 1


def test_parts_choose_alike(tmp_path, corpus):
    parts = [mine_part(corpus, tmp_path / f"{rank}.mgr", rank=rank, world=2).path for rank in range(2)]
    options = {"budget": 50, "policy": "gain", "min_documents": 2, "require": [(1, 2)]}
    found, want = select_parts(parts, **options), memgraft.mine(corpus, **options)
    assert (found.fingerprint, found.metadata) == (want.fingerprint, want.metadata)


def test_sketch_changes_nothing_but_the_spill(tmp_path):
    rng = np.random.default_rng(0)
    documents = np.split((rng.zipf(1.3, 200_000) % 997).astype(np.uint32), np.arange(500, 200_000, 500))
    with CorpusWriter(tmp_path / "corpus", vocab_size=997) as writer:
        for document in documents:
            writer.add(document)
        corpus = memgraft.Corpus.open(writer.finish())
    plain = memgraft.mine(corpus, (2, 3, 5), 20_000, memory="3MiB", temporary=tmp_path)
    sketched = memgraft.mine(corpus, (2, 3, 5), 20_000, memory="3MiB", temporary=tmp_path, sketch=True)
    assert (plain.fingerprint, plain.metadata) == (sketched.fingerprint, sketched.metadata)


def test_a_full_disk_is_said_before_the_start(tmp_path, corpus, monkeypatch):
    with CorpusWriter(tmp_path / "large", vocab_size=900) as writer:
        writer.add(np.random.default_rng(0).integers(0, 900, 200_000).astype(np.uint32))
        large = memgraft.Corpus.open(writer.finish())
    plan = plan_spill(large, memory="2MiB", temporary=tmp_path, threads=1)
    assert plan.bytes == int(plan.bytes_per_token * 200_000) > 200_000
    # Two threads have buffers for fewer runs: these are merged into longer ones, which lie beside them.
    twice = plan_spill(large, memory="2MiB", temporary=tmp_path, threads=2)
    assert twice.bytes == int(2 * twice.bytes_per_token * 200_000)
    assert plan_spill(corpus).bytes == 0
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(StorageError, match=r"expected about .* at least .*, found 1,000; give another temporary="):
        memgraft.mine(large, memory="2MiB", temporary=tmp_path, threads=1)
    # An estimate refuses by no hair.
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=plan.least))
    assert plan.least == plan.bytes // 2
    memgraft.mine(large, memory="2MiB", temporary=tmp_path, threads=1)


def test_a_sketch_is_refused_only_what_recurs(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    once, again = rng.integers(0, 60_000, 300_000), np.tile(rng.integers(0, 60_000, 15_000), 20)
    plans = {}
    for name, tokens in (("once", once), ("again", again)):
        with CorpusWriter(tmp_path / name, vocab_size=60_000) as writer:
            for document in np.split(tokens.astype(np.uint32), 20):
                writer.add(document)
            corpus = memgraft.Corpus.open(writer.finish())
        means = {"orders": (2,), "memory": "4MiB", "temporary": tmp_path, "threads": 1}
        plans[name] = corpus, plan_spill(corpus, **means), plan_spill(corpus, sketch=True, **means), means
    for _, plain, sketched, _ in plans.values():
        assert sketched.bytes == plain.bytes > 0
        assert sketched.least <= plain.least
    # Of random tokens a sketch leaves single ones; of a text that is there twenty times, everything.
    (corpus, plain, sketched, means), (repeated, *_, plan, _) = plans["once"], plans["again"]
    assert sketched.least < plain.least * 0.8
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=sketched.least))
    memgraft.mine(corpus, sketch=True, **means)
    with pytest.raises(StorageError, match=r"more memory="):
        memgraft.mine(corpus, **means)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(StorageError, match=r"found 1,000; give another temporary=, or more memory=$"):
        memgraft.mine(repeated, sketch=True, **means)
    assert plan.least > 1000


def test_the_rate_is_known_by_order(corpus, tmp_path):
    plan = plan_spill(corpus, (2, 4), temporary=tmp_path, by_order=True)
    rates = list(plan.by_order.values())
    assert list(plan.by_order) == [1, 2, 3, 4]
    assert 0 < rates[0] < rates[1] < rates[2] < rates[3] == plan.bytes_per_token
    assert plan.bytes == 0
    assert plan_spill(corpus, (2, 4), temporary=tmp_path).by_order == {}


def test_refusals(corpus):
    for options, error, message in [
        ({"policy": "best"}, ArgumentError, "expected one of shares, count, documents, gain"),
        ({"policy": "count", "budget": None}, ArgumentError, "expected a number of keys in all"),
        ({"exclude": corpus}, ArgumentError, "exclude_from="),
        ({"require": [(1, 2, 3, 4, 5)]}, ArgumentError, "expected keys of the orders mined"),
        ({"require": [(1, 40)]}, TokenError, "reserved or outside the vocabulary"),
        ({"require": [(-1, 4)]}, ArgumentError, "negative"),
        ({"min_documents": -1}, ArgumentError, "min_documents"),
        ({"keep": lambda batch: np.ones(3)}, ArgumentError, "keep: expected a boolean array"),
    ]:
        with pytest.raises(error, match=message):
            memgraft.mine(corpus, **options)
