"""Paths where something opened is expected: one error, whichever call it is."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

import memgraft
from memgraft.bank.annotation import annotate
from memgraft.data import GraftCollator, MemoryBatch
from memgraft.errors import ArgumentError, ConfigError, DonorError, KeySetError, StorageError
from memgraft.harvesting.asked import refuse_taps
from memgraft.harvesting.donor import open_donor
from memgraft.mining import merge_parts, mine_part, plan_spill, select_parts
from memgraft.planning import plan_budgets
from tiny import byte_bpe

CORPUS, KEYS = "memgraft.Corpus.open", "memgraft.KeySet.open"


@pytest.mark.parametrize(
    ("wraps", "way_out"),
    [
        (memgraft.Bank, "memgraft.Bank.open opens a file; "),
        (memgraft.Corpus, r"memgraft.Corpus.open opens a file \(memgraft.CorpusWriter writes documents of ids"),
        (memgraft.KeySet, r"memgraft.KeySet.open opens a file \(memgraft.KeySet.from_keys takes keys that are ids\)"),
        (memgraft.NgramIndex, "memgraft.NgramIndex.open opens a file; "),
    ],
)
@pytest.mark.parametrize("given", ["a path", [[1, 2], [3]], None])
def test_a_class_that_is_called_in_place_of_opened_names_what_opens_it(wraps, way_out, given):
    with pytest.raises(ArgumentError, match=rf"^{way_out}.*the class itself was called with "):
        wraps(given)


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


@pytest.mark.parametrize("wrong", [[[1, 2, 3], [1, 2]], np.arange(3), iter([[1, 2]]), {"input_ids": [[1, 2]]}])
def test_what_is_in_memory_is_refused_by_the_call_that_makes_a_file_of_it(wrong):
    with pytest.raises(
        ArgumentError, match=r"^corpus: expected it opened, got a \w+; .* \(memgraft.CorpusWriter writes"
    ):
        memgraft.mine(wrong)
    with pytest.raises(ArgumentError, match=r"^keys: expected it opened, got a \w+; .* \(memgraft.KeySet.from_keys"):
        memgraft.NgramIndex.build(wrong)
    if not isinstance(wrong, dict):
        with pytest.raises(ArgumentError, match=r"^path: expected paths, got a \w+; .* memgraft.CorpusWriter"):
            memgraft.Corpus.open(wrong)


def test_a_donor_that_is_a_model_is_refused():
    with pytest.raises(
        ArgumentError, match=r"^donor: expected a path, .* got a Linear; save a model and its tokenizer"
    ):
        open_donor(torch.nn.Linear(1, 1))


def test_open_tokenizers_are_refused_where_a_file_is_read(tmp_path):
    (tmp_path / "a.txt").write_text("a text", encoding="utf-8")
    tokenizer = byte_bpe(["a text"], 300)
    for call in (
        lambda: memgraft.tokenize_folder(tmp_path / "a.txt", tokenizer, tmp_path / "out"),
        lambda: memgraft.Corpus.open(tmp_path / "a.txt", tokenizer=tokenizer),
    ):
        with pytest.raises(
            ValueError, match=r"tokenizer: expected the path .*, got a Tokenizer; save_pretrained\(folder"
        ):
            call()


def test_what_a_bank_is_not_made_of(tmp_path):
    keys = memgraft.KeySet.from_keys([(1, 2), (3,)], vocab_size=8)
    values = torch.randn(2, 1, 4)
    with pytest.raises(ArgumentError, match=r"keys: expected it opened, got a list; .*KeySet.from_keys"):
        memgraft.Bank.create(tmp_path / "bank", keys=[(1, 2), (3,)], values=values, taps=(1,))
    bits = values.to(torch.bfloat16)
    for wrong in (bits, values.clone().requires_grad_()):
        with pytest.raises(ArgumentError, match=r"give .detach\(\).cpu\(\), and of bfloat16 its bits, .view"):
            memgraft.Bank.create(tmp_path / "bank", keys=keys, values=wrong, taps=(1,))
    bank = memgraft.Bank.create(tmp_path / "bank", keys=keys, values=bits.view(torch.uint16), taps=(1,))
    assert torch.equal(torch.from_numpy(bank[:]), bits.float())
    with pytest.raises(KeySetError, match="keys: expected sequences of integer token ids"):
        memgraft.KeySet.from_keys([1, 2], vocab_size=8)


def test_coverage_names_what_makes_an_index_of_keys():
    keys = memgraft.KeySet.from_arrays([1, 2], [0, 2], [3], vocab_size=8)
    with pytest.raises(ArgumentError, match=r"got a key set; give NgramIndex.build\(keys\)"):
        memgraft.coverage(keys, None)
    built = memgraft.NgramIndex.build(keys)
    with pytest.raises(ArgumentError, match="corpus: expected it opened"):
        memgraft.coverage(built, "corpus.bin")


def test_swapped_arguments_are_told_apart(tmp_path, make_bank):
    with memgraft.CorpusWriter(tmp_path / "corpus", vocab_size=9) as writer:
        writer.add([1, 2, 1, 2])
        corpus = memgraft.Corpus.open(writer.finish())
    keys = memgraft.mine(corpus, (2,), 2)
    bank = make_bank(9)
    for call, name, found in (
        (lambda: memgraft.coverage(corpus, keys), "index", "Corpus"),
        (lambda: memgraft.mine(keys), "corpus", "KeySet"),
        (lambda: plan_spill(bank), "corpus", "Bank"),
        (lambda: memgraft.NgramIndex.build(corpus), "keys", "Corpus"),
        (lambda: annotate(corpus, bank, tmp_path / "rows"), "bank", "Corpus"),
        (lambda: MemoryBatch.look_up(keys, torch.ones(1, 2), torch.zeros(1, 2)), "bank", "KeySet"),
    ):
        with pytest.raises(ArgumentError, match=rf"^{name}: expected it opened, got a {found}; open a file with"):
            call()


def test_a_batch_names_what_opens_its_bank(make_bank):
    bank, ids = make_bank(9), torch.ones(1, 2, dtype=torch.int64)
    with pytest.raises(ArgumentError, match=r"bank: expected it opened, got the path 'bank/'; .*Bank.open"):
        MemoryBatch.look_up("bank/", ids, torch.zeros_like(ids))
    found = MemoryBatch.look_up(bank, ids, torch.zeros_like(ids))
    with pytest.raises(ArgumentError, match=r"bank: expected it opened, got the path 'bank/'; .*Bank.open"):
        found.stage("bank/")


def test_an_inner_collator_is_one(make_bank):
    with pytest.raises(ConfigError, match=r"inner: expected a collator, .* got 5"):
        GraftCollator(make_bank(9), inner=5)


def test_the_text_of_an_eos_is_no_token_id(tmp_path, make_bank):
    bank, text = make_bank(9), r"eos_id: expected a token id, got '<eos>'; a tokenizer has it as eos_token_id"
    (tmp_path / "tokens.bin").write_bytes(np.arange(8, dtype=np.uint16).tobytes())
    for call in (
        lambda: bank.lookup([1, 2], eos_id="<eos>"),
        lambda: GraftCollator(bank, eos_id="<eos>"),
        lambda: GraftCollator(bank, eos_id=[2, "<eos>"]),
        lambda: memgraft.Corpus.open(tmp_path / "tokens.bin", eos_id="<eos>"),
        lambda: memgraft.CorpusWriter(tmp_path / "written", vocab_size=9, eos_id="<eos>"),
    ):
        with pytest.raises(ArgumentError, match=text):
            call()
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    for several in (2, [2, 4], (2, 4), np.array([2, 4]), np.int64(2)):
        segments = GraftCollator(bank, eos_id=several)([{"input_ids": ids[0]}])["memgraft"].segments
        assert segments.tolist() == [[0, 0, 1, 1, 2] if np.size(several) == 2 else [0, 0, 1, 1, 1]]


def test_a_text_is_no_list_of_parts_and_a_number_no_list_of_taps(tmp_path):
    for call in (lambda: merge_parts("part.mgr", tmp_path / "out.mgr"), lambda: select_parts(tmp_path / "part.mgr")):
        with pytest.raises(ArgumentError, match=r"parts: expected a list, got .*part.mgr.*; for one give"):
            call()
    keys = memgraft.KeySet.from_keys([(1, 2)], vocab_size=8)
    with pytest.raises(ArgumentError, match=r"taps: expected donor depths, one per tap, as \(8,\), found 1"):
        memgraft.Bank.create(tmp_path / "bank", keys=keys, values=np.zeros((1, 1, 4), np.float32), taps=1)
    bank = memgraft.Bank.create(
        tmp_path / "bank", keys=keys, values=np.zeros((1, 1, 4), np.float32), taps=np.array([1])
    )
    with pytest.raises(ArgumentError, match="resident: expected True, False or a number of rows, found 'all'"):
        memgraft.Bank.open(bank.path, resident="all")


def test_counts_of_keys_are_given_apart():
    counted = Counter([(1, 2), (3,), (3,)])
    with pytest.raises(ArgumentError, match=r"keys: expected keys alone, got a Counter; .*list\(counted.values\(\)\)"):
        memgraft.KeySet.from_keys(counted, vocab_size=8)
    keys = memgraft.KeySet.from_keys(list(counted), list(counted.values()), vocab_size=8)
    assert [(key, keys.count(row)) for row, key in enumerate(keys)] == [((3,), 2), ((1, 2), 1)]


def test_a_dataset_in_memory_is_saved_and_opened(tmp_path):
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_dict({"input_ids": [[1, 2, 3], [1, 2]]})
    with pytest.raises(ArgumentError, match=r"^corpus: .*got a Dataset; .*save_to_disk of a datasets.Dataset"):
        memgraft.mine(dataset)
    with pytest.raises(ArgumentError, match=r"^path: expected paths, got a Dataset; save_to_disk\(folder\)"):
        memgraft.Corpus.open(dataset)
    dataset.save_to_disk(tmp_path / "saved")
    assert memgraft.Corpus.open(tmp_path / "saved").num_documents == 2


def test_what_is_no_number_is_refused(tmp_path):
    with memgraft.CorpusWriter(tmp_path / "corpus", vocab_size=9) as writer:
        writer.add([1, 2, 1, 2])
        corpus = memgraft.Corpus.open(writer.finish())
    with pytest.raises(ArgumentError, match="budget: expected a whole number, got '3k'"):
        memgraft.mine(corpus, budget="3k")
    with pytest.raises(ArgumentError, match=r"as a number, or by order as \{2: number, …\}, got \[3, 4\]"):
        memgraft.mine(corpus, (2, 3), [3, 4])
    mined = [memgraft.mine(corpus, (2,), number, policy="count") for number in (2, np.int64(2))]
    assert mined[0].fingerprint == mined[1].fingerprint
    assert mined[0].metadata == mined[1].metadata
    for orders in ("2-4", 3, (2, 2.5)):
        with pytest.raises(ArgumentError, match=r"orders: expected whole numbers, as \(2, 3, 4\), got "):
            memgraft.mine(corpus, orders=orders, budget=9)
    for taps in (2, "a", (None,)):
        with pytest.raises(DonorError, match=r"taps: expected numbers of blocks, as \(8,\), found "):
            refuse_taps("donor", taps)


def test_a_bank_and_its_parts_are_told_apart(make_bank):
    place = make_bank(9).path
    for opened in (memgraft.KeySet, memgraft.NgramIndex):
        with pytest.raises(
            StorageError, match=r"found a folder of a bank: give keys\.mgk or index\.mgi inside it, or Bank"
        ):
            opened.open(place)
        with pytest.raises(StorageError, match=r"found a folder$"):
            opened.open(place.parent)
    with pytest.raises(StorageError, match=r"keys.mgk: expected a bank directory, found a file; KeySet.open and Ngram"):
        memgraft.Bank.open(place / "keys.mgk")
