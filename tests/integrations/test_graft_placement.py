"""Where a grafted model's weights lie: offloaded, dispatched, in other dtypes, saved with the recipient, replicated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model, init_empty_weights
from transformers import AutoModelForCausalLM

from grafted_models import config, grafted, prompts, recipient, wake
from memgraft.errors import GraftError
from memgraft.integrations.transformers import disabled, graft, graft_layers

HERE = torch.device("cpu")
DEVICE_MAP = {
    "model.embed_tokens": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.layers.2": "disk",
    "model.norm": "cpu",
    "model.rotary_emb": "cpu",
    "lm_head": "cpu",
}


@torch.no_grad()
def answers(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    ids = prompts()
    return model(ids).logits, model.generate(ids, max_new_tokens=8, do_sample=False)


def on_disk(model: Any, folder: Path) -> Any:
    return dispatch_model(model, DEVICE_MAP, main_device="cpu", offload_dir=str(folder), force_hooks=True)


OFFLOADS = {
    "cpu": lambda model, folder: cpu_offload(model, execution_device=HERE),
    "cpu_with_buffers": lambda model, folder: cpu_offload(model, execution_device=HERE, offload_buffers=True),
    "disk": lambda model, folder: disk_offload(model, str(folder), execution_device=HERE),
    "device_map": on_disk,
}


# Before transformers 5.19 `generate` warns of a model whose weights are elsewhere at the moment.
@pytest.mark.filterwarnings("ignore:You are calling .generate.. with the `input_ids` being on a device:UserWarning")
@pytest.mark.parametrize("how", OFFLOADS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_graft_attached_before_and_after_offloading(how: str, when: str, bank: Any, tmp_path: Path) -> None:
    expected = answers(grafted(bank))
    model = recipient()
    if when == "before":
        wake(graft(model, bank, config()))
    model = OFFLOADS[how](model, tmp_path / "offloaded")
    if when == "after":
        wake(graft(model, bank, config()))
    weights = [p for layer in graft_layers(model)["default"].values() for p in layer.parameters()]
    # What is attached before is offloaded with its block, what is attached after stays where the block computes.
    assert ("meta" in {weight.device.type for weight in weights}) == (when == "before")
    for got, wanted in zip(answers(model), expected, strict=True):
        assert torch.equal(got, wanted)
    with disabled(model), torch.no_grad():
        assert torch.equal(model(prompts()).logits, recipient()(prompts()).logits)


def test_a_recipient_loaded_with_a_device_map(bank: Any, tmp_path: Path) -> None:
    recipient().save_pretrained(tmp_path / "recipient")
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "recipient", device_map=DEVICE_MAP, offload_folder=str(tmp_path / "offloaded")
    )
    assert "meta" in {weight.device.type for weight in model.parameters()}
    model.generation_config.eos_token_id = None
    wake(graft(model, bank, config()))
    for got, wanted in zip(answers(model), answers(grafted(bank)), strict=True):
        assert torch.equal(got, wanted)


def test_a_recipient_without_weights_is_refused(bank: Any) -> None:
    with init_empty_weights():
        model = recipient()
    with pytest.raises(GraftError, match="meta device and nothing brings them"):
        graft(model, bank, config())


@pytest.mark.parametrize(("cast", "tolerance"), [("half", 0.02), ("bfloat16", 0.2), ("double", 1e-5)])
def test_the_whole_model_in_another_dtype(cast: str, tolerance: float, bank: Any) -> None:
    expected = answers(grafted(bank))[0]
    model = getattr(grafted(bank), cast)()
    logits, sequences = answers(model)
    assert logits.dtype == next(model.parameters()).dtype
    torch.testing.assert_close(logits.float(), expected, atol=tolerance, rtol=0)
    with torch.no_grad():
        whole = model(sequences, use_cache=False).logits
        out = model.generate(
            prompts(), max_new_tokens=8, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    got = torch.stack(out.logits, dim=1).float()
    torch.testing.assert_close(got, whole[:, -9:-1].float(), atol=tolerance, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_float32_graft_on_a_recipient_of_another_dtype_learns(dtype: torch.dtype, bank: Any) -> None:
    model = wake(graft(recipient().to(dtype), bank, config())).train()
    ids = prompts()
    model(ids, labels=ids).loss.backward()
    for layer in graft_layers(model)["default"].values():
        for name, weight in layer.named_parameters():
            assert weight.dtype == torch.float32
            assert weight.grad is not None, name
            assert torch.isfinite(weight.grad).all(), name


def test_the_banks_rows_stay_where_they_are(bank: Any, tmp_path: Path) -> None:
    rows = bank.values([0, 5]).copy()
    model = grafted(bank).half()
    on_disk(model, tmp_path / "offloaded")
    answers(model)
    assert (bank.values([0, 5]) == rows).all()
    files = {path.name for path in (tmp_path / "offloaded").rglob("*.dat")}
    assert any("memgraft" in name for name in files)
    assert not any(path.stat().st_size == bank.values(range(bank.num_rows)).nbytes for path in tmp_path.rglob("*"))


def test_save_pretrained_of_a_grafted_recipient(bank: Any, tmp_path: Path) -> None:
    model = grafted(bank)
    model.save_pretrained(tmp_path)
    plain, facts = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    # The recipient comes back whole; transformers says which weights found no place.
    assert facts["missing_keys"] == set()
    assert facts["unexpected_keys"]
    assert all(".memgraft." in key for key in facts["unexpected_keys"])
    assert torch.equal(plain(prompts()).logits, recipient()(prompts()).logits)


def test_data_parallel_replicas_are_refused(bank: Any) -> None:
    model = grafted(bank)
    replica = model.model._replicate_for_data_parallel()
    with pytest.raises(GraftError, match=r"nn\.DataParallel.*DistributedDataParallel"):
        replica(prompts())
