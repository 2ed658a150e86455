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


MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "samples": {"do_sample": True, "num_return_sequences": 2},
    "static": {"cache_implementation": "static", "disable_compile": True},
    "chunked": {"prefill_chunk_size": 7},
}


@torch.no_grad()
@pytest.mark.parametrize("mode", list(MODES))
def test_generation_reads_a_stack_of_several_types_as_a_full_forward_does(
    bank: Any, overlay: Bank, tmp_path: Path, mode: str
) -> None:
    small = make_bank(tmp_path / "small", keys=random_keys(40, seed=4), seed=4, dtype="int8")
    stack = Bank.open([bank.path, overlay.path, small.path])
    model, ids = grafted(bank), prompts(2, 20)
    torch.manual_seed(0)
    options = {"do_sample": False, "max_new_tokens": 8, **MODES[mode]}
    run = {"output_logits": True, "return_dict_in_generate": True}
    out = model.generate(ids, memgraft=stack, **options, **run)
    whole = model(out.sequences, use_cache=False, memgraft=stack).logits
    if "num_beams" not in options:
        torch.testing.assert_close(torch.stack(out.logits, 1), whole[:, 19:-1], atol=1e-6, rtol=1e-6)
    if not options["do_sample"]:
        plain = {name: value for name, value in options.items() if name in ("do_sample", "max_new_tokens", "num_beams")}
        slow = model.generate(ids, memgraft=stack, use_cache=False, **plain)
        assert torch.equal(out.sequences, slow)
    rows, _ = stack.lookup(out.sequences.numpy())
    assert (rows >= bank.num_rows + overlay.num_rows).any()
