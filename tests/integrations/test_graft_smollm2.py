"""The real SmolLM2-135M as a recipient, where its converted folder lies in the cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from grafted_models import wake
from memgraft.assets.cache import cache_directory
from memgraft.bank import Bank
from memgraft.config import GraftConfig
from memgraft.integrations.transformers import detach, graft
from memgraft.keyset import KeySet

pytestmark = pytest.mark.slow
TEXT = (
    "The capital of France is Paris. The capital of Germany is Berlin. The capital of the United States is Washington."
)


@pytest.fixture(scope="module")
def smollm2() -> tuple[Any, Any]:
    folders = sorted((cache_directory() / "converted").glob("*/config.json"))
    if not folders:
        pytest.skip("SmolLM2 is not in the cache: any harvest from the default donor puts it there")
    folder = folders[0].parent
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    return model, AutoTokenizer.from_pretrained(folder)


def test_identity_and_decoding(smollm2: tuple[Any, Any], tmp_path: Any) -> None:
    model, tokenizer = smollm2
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    row = ids[0].tolist()
    keys = {tuple(row[at : at + order]) for order in (2, 3, 4) for at in range(len(row) - order + 1)}
    bank = Bank.create(
        tmp_path / "bank",
        keys=KeySet.from_keys(sorted(keys), vocab_size=model.config.vocab_size),
        values=np.random.default_rng(0).normal(size=(len(keys), 1, 576)).astype(np.float32),
        taps=(8,),
    )
    before = model(ids).logits
    graft(model, bank, GraftConfig(sites=(1, 12)), tokenizer=tokenizer)
    assert torch.equal(model(ids).logits, before)
    detach(model)
    wake(graft(model, bank, GraftConfig(sites=(1, 12), init="scratch"), tokenizer=tokenizer))
    assert (model(ids).logits - before).abs().max() > 1

    def run(**options: Any) -> tuple[torch.Tensor, torch.Tensor]:
        settings = {"max_new_tokens": 16, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
        out = model.generate(ids, **settings, **options)
        return out.sequences, torch.stack(out.logits, dim=1)

    sequences, logits = run()
    with torch.no_grad():
        whole = model(sequences, use_cache=False).logits[:, -17:-1]
    # Logits reach 30 and pass 30 blocks: the recipient alone differs from its own full forward by 5e-5.
    close = {"atol": 2e-4, "rtol": 0}
    torch.testing.assert_close(logits, whole, **close)
    for options in ({"cache_implementation": "static"}, {"prefill_chunk_size": 7}, {"prompt_lookup_num_tokens": 5}):
        got, got_logits = run(**options)
        assert torch.equal(got, sequences)
        torch.testing.assert_close(got_logits, logits, **close)
    detach(model)
