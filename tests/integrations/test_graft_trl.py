"""TRL's SFT trainer, where it is installed."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from grafted_models import FIRST, VOCAB, config, make_bank, recipient, wake, word_tokenizer
from memgraft.data import GraftCollator
from memgraft.integrations.transformers import graft, mark_trainable

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # TRL's own warnings are not ours


@pytest.mark.parametrize("with_collator", [False, True])
def test_sft_trains_the_graft_alone(with_collator: bool, tmp_path: Path) -> None:
    import pyarrow
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    bank = make_bank(tmp_path / "bank")
    model = wake(graft(recipient(), bank, config()))
    mark_trainable(model)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(FIRST, VOCAB, (32, 12), generator=generator).tolist()
    arguments = SFTConfig(
        output_dir=str(tmp_path / "out"),
        max_steps=3,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        logging_steps=1,
        gradient_checkpointing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        # A fingerprint of its own: hashing the table pickles parts of pyarrow that not every version can pickle.
        train_dataset=Dataset(pyarrow.table({"input_ids": rows}), fingerprint="rows"),
        processing_class=word_tokenizer(),
    )
    if with_collator:
        trainer.data_collator = GraftCollator(bank, inner=trainer.data_collator)
    trainer.train()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed
    assert all(".memgraft." in name for name in changed)
    assert any("memory_value" in name for name in changed)
    assert any("fallback" in name for name in changed)


def test_a_copy_is_the_reference_that_dpo_would_open_without_the_graft(tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    model = wake(graft(recipient(), make_bank(tmp_path / "bank"), config()))
    arguments = DPOConfig(
        output_dir=str(tmp_path / "out"),
        max_steps=1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        logging_steps=1,
    )
    pairs = {"prompt": ["w3 w4 w5"] * 4, "chosen": [" w6 w7"] * 4, "rejected": [" w8 w9"] * 4}
    trainer = DPOTrainer(
        model,
        copy.deepcopy(model),
        args=arguments,
        train_dataset=Dataset.from_dict(pairs),
        processing_class=word_tokenizer(),
    )
    trainer.train()
    first = trainer.state.log_history[0]
    # Policy and reference say the same before the first step, as they would not if one had no memory.
    assert first["rewards/chosen"] == first["rewards/rejected"] == 0
