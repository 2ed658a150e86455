"""A grafted model reads a stack of banks as the one bank they merge into, and as the base where the overlay is gone."""

from pathlib import Path
from typing import Any

import pytest
import torch

from grafted_models import grafted, make_bank, prompts, random_keys
from memgraft.bank import Bank, make


@pytest.fixture(scope="module")
def overlay(tmp_path_factory: pytest.TempPathFactory) -> Bank:
    return make_bank(tmp_path_factory.mktemp("overlay") / "over", keys=random_keys(100, seed=9), seed=9)


@torch.no_grad()
def test_stacked_and_merged_give_the_same_logits(bank: Any, overlay: Bank, tmp_path: Path) -> None:
    model, ids = grafted(bank), prompts(2, 40)
    stack = Bank.open([bank.path, overlay.path])
    alone = model(ids, use_cache=False).logits
    stacked = model(ids, memgraft=stack, use_cache=False).logits
    assert not torch.equal(stacked, alone)
    merged = make.merge(stack.paths, tmp_path / "merged")
    torch.testing.assert_close(model(ids, memgraft=merged, use_cache=False).logits, stacked, atol=1e-6, rtol=0)
    assert torch.equal(model(ids, use_cache=False).logits, alone)
    spoken = model.generate(ids[:, :20], memgraft=stack, max_new_tokens=8, do_sample=False)
    slow = model.generate(ids[:, :20], memgraft=merged, max_new_tokens=8, do_sample=False, use_cache=False)
    assert torch.equal(spoken, slow)
