"""Paths where something opened is expected: one error, whichever call it is."""

from pathlib import Path

import pytest

import memgraft
from memgraft.bank.annotation import annotate
from memgraft.errors import ArgumentError
from memgraft.mining import mine_part
from memgraft.planning import plan_budgets

CORPUS, KEYS = "memgraft.Corpus.open", "memgraft.KeySet.open"


@pytest.mark.parametrize(
    ("call", "name", "opener"),
    [
        (lambda: memgraft.mine("corpus.bin"), "corpus", CORPUS),
        (lambda: mine_part(Path("corpus.bin"), "part.mgr"), "corpus", CORPUS),
        (lambda: plan_budgets("corpus.bin", [10]), "corpus", CORPUS),
        (lambda: memgraft.NgramIndex.build("keys.mgk"), "keys", KEYS),
        (lambda: memgraft.coverage("index.mgi", "corpus.bin"), "index", "memgraft.NgramIndex.open"),
        (lambda: annotate("bank/", "corpus.bin", "rows/"), "bank", "memgraft.Bank.open"),
        (
            lambda: memgraft.harvest("keys.mgk", recipient_tokenizer="t", donor="d", taps=(1,), out="bank/"),
            "keys",
            KEYS,
        ),
    ],
)
def test_a_path_is_refused_by_the_call_that_opens_it(call, name, opener):
    with pytest.raises(ArgumentError, match=rf"^{name}: expected it opened, got the path .*; open it with {opener}"):
        call()


def test_coverage_names_what_makes_an_index_of_keys():
    keys = memgraft.KeySet.from_arrays([1, 2], [0, 2], [3], vocab_size=8)
    with pytest.raises(ArgumentError, match=r"got a key set; give NgramIndex.build\(keys\)"):
        memgraft.coverage(keys, None)
    built = memgraft.NgramIndex.build(keys)
    with pytest.raises(ArgumentError, match="corpus: expected it opened"):
        memgraft.coverage(built, "corpus.bin")
