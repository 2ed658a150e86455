"""Wrappers around blocks and models, weights held in parts, and embeddings that change size."""

from __future__ import annotations

import importlib.machinery
import sys
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    IA3Config,
    LoraConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
    inject_adapter_in_model,
)
from safetensors.torch import load_file
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    apply_activation_checkpointing,
    checkpoint_wrapper,
    offload_wrapper,
)

from grafted_models import VOCAB, config, grafted, prompts, recipient, wake
from memgraft.data import GraftCollator
from memgraft.errors import ConfigError, GraftError
from memgraft.integrations.peft import EXCLUDE_MODULES
from memgraft.integrations.transformers.families import unwrap
from memgraft.integrations.transformers.saving import restore_weights
from memgraft.torch import (
    graft,
    graft_layers,
    load_graft,
    mark_trainable,
    optimizer_groups,
    parameter_counts,
    save_graft,
)


class Bare(nn.Module):
    """A wrapper of somebody's own."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.whatever = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.whatever(*args, **kwargs)


WRAPPERS = {
    "checkpoint": checkpoint_wrapper,
    "reentrant": lambda block: checkpoint_wrapper(block, checkpoint_impl=CheckpointImpl.REENTRANT),
    "offload": offload_wrapper,
    "compile": lambda block: torch.compile(block, backend="eager"),
    "own": Bare,
    "two": lambda block: checkpoint_wrapper(Bare(block)),
}


def compiled_is_slow(kinds: Iterable[str]) -> list[Any]:
    """The kinds as parameters; compiling takes many seconds."""
    return [pytest.param(kind, marks=pytest.mark.slow) if kind == "compile" else kind for kind in kinds]


def wrap_blocks(model: nn.Module, kind: str) -> None:
    apply_activation_checkpointing(
        model,
        checkpoint_wrapper_fn=WRAPPERS[kind],
        check_fn=lambda module: type(module).__name__ == "LlamaDecoderLayer",
    )


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("kind", compiled_is_slow(WRAPPERS))
def test_blocks_are_found_through_wrappers(bank: Any, tmp_path: Path, kind: str) -> None:
    plain = grafted(bank)
    model, ids = grafted(bank), prompts()
    whole = load_file(save_graft(plain, tmp_path / "plain") / "graft.safetensors")
    wrap_blocks(model, kind)
    assert torch.equal(model(ids).logits, plain(ids).logits)
    mark_trainable(model)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    assert all("memgraft" in name for name in trained)
    assert sum(len(group["params"]) for group in optimizer_groups(model, lr=1e-3)) == len(trained)
    saved = load_file(save_graft(model, tmp_path / "graft") / "graft.safetensors")
    assert saved.keys() == whole.keys()
    assert all(torch.equal(saved[key], whole[key]) for key in whole)
    other = recipient()
    wrap_blocks(other, kind)
    assert torch.equal(load_graft(other, tmp_path / "graft", bank=bank)(ids).logits, plain(ids).logits)


def test_a_layer_that_cannot_be_found_is_an_error(bank: Any, tmp_path: Path) -> None:
    class Opaque(nn.Module):
        def __init__(self, block: nn.Module) -> None:
            super().__init__()
            self.block, self.weight = block, nn.Parameter(torch.zeros(1))

    model = grafted(bank)
    site = next(iter(graft_layers(model)["default"]))
    model.model.layers[site] = Opaque(model.model.layers[site])
    for call in (
        graft_layers,
        mark_trainable,
        lambda m: save_graft(m, tmp_path),
        lambda m: optimizer_groups(m, lr=1.0),
    ):
        with pytest.raises(GraftError, match="Opaque"):
            call(model)
    assert not list(tmp_path.iterdir())


def test_whole_models_are_found_through_wrappers(bank: Any) -> None:
    model = grafted(bank)
    assert graft_layers(torch.compile(Bare(model), backend="eager")).keys() == {"default"}


@pytest.mark.parametrize("how", ["empty", "meta", "flat"])
def test_weights_in_parts_are_never_saved(bank: Any, tmp_path: Path, how: str) -> None:
    model = grafted(bank)
    for layers in graft_layers(model).values():
        for layer in layers.values():
            if how == "meta":
                layer.to("meta")
            for parameter in layer.parameters() if how != "meta" else ():
                parameter.data = torch.empty(0) if how == "empty" else parameter.data.flatten()[:1]
    with pytest.raises(GraftError, match="meta device" if how == "meta" else "expected shape"):
        save_graft(model, tmp_path / "graft")
    assert not (tmp_path / "graft" / "graft.json").exists()


def partition(model: nn.Module) -> None:
    """What ZeRO-3 does to parameters outside a forward: number, shape, and no values to be seen."""
    for number, parameter in enumerate(model.parameters()):
        parameter.ds_id, parameter.ds_shape, parameter.held = number, parameter.shape, parameter.data
        parameter.data = torch.empty(0, dtype=parameter.dtype)


class Gathered:
    """Stands in for ``deepspeed.zero.GatheredParameters``: values are there inside, kept if a rank writes them."""

    def __init__(self, parameters: Any, modifier_rank: int | None = None) -> None:
        self.parameters, self.modifier_rank = list(parameters), modifier_rank

    def __enter__(self) -> None:
        for parameter in self.parameters:
            parameter.data = parameter.held.clone()

    def __exit__(self, *_: Any) -> None:
        for parameter in self.parameters:
            if self.modifier_rank is not None:
                parameter.held = parameter.data
            parameter.data = torch.empty(0, dtype=parameter.dtype)


def test_parameters_in_parts_are_gathered_as_zero_3_gathers_them(
    bank: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("deepspeed")
    module.__spec__ = importlib.machinery.ModuleSpec("deepspeed", None)
    module.zero = types.SimpleNamespace(GatheredParameters=Gathered)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "deepspeed", module)
    plain, model, ids = grafted(bank), grafted(bank), prompts()
    mark_trainable(plain)
    partition(model)
    mark_trainable(model)
    assert parameter_counts(model) == parameter_counts(plain)
    sizes = [
        {
            group["name"]: (len(group["params"]), group["weight_decay"])
            for group in optimizer_groups(m, lr=1.0, weight_decay=0.1)
        }
        for m in (plain, model)
    ]
    assert sizes[0] == sizes[1]
    whole = load_file(save_graft(plain, tmp_path / "plain") / "graft.safetensors")
    saved = load_file(save_graft(model, tmp_path / "parts") / "graft.safetensors")
    assert saved.keys() == whole.keys()
    assert all(torch.equal(saved[key], whole[key]) for key in whole)
    other = {key: tensor + 1 if tensor.is_floating_point() else tensor for key, tensor in whole.items()}
    restore_weights(model, "default", other, tmp_path)
    again = load_file(save_graft(model, tmp_path / "restored") / "graft.safetensors")
    assert all(torch.equal(again[key], other[key]) for key in other)
    site = next(iter(graft_layers(model)["default"]))
    with pytest.raises(GraftError, match=r"expected shape \(32, 24\), found \(1, 1\)"):
        restore_weights(model, "default", other | {f"sites.{site}.memory_value.weight": torch.zeros(1, 1)}, tmp_path)
    with Gathered(model.parameters()):
        restore_weights(plain, "default", other, tmp_path)
        assert torch.equal(model(ids).logits, plain(ids).logits)


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Any:
    import torch.distributed as dist

    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path_factory.mktemp('ranks') / 'store'}", rank=0, world_size=1
    )
    yield
    dist.destroy_process_group()


def whole_wrapped(model: Any, kind: str) -> Any:
    if kind == "compile":
        return torch.compile(model, backend="eager")
    if kind == "DDP":
        return nn.parallel.DistributedDataParallel(model)
    if kind == "PEFT twice":
        return Bare(Bare(get_peft_model(model, LORA)))
    if kind == "DDP of PEFT":
        mark_trainable(adapted := get_peft_model(model, LORA))
        return nn.parallel.DistributedDataParallel(adapted)
    if kind == "merged":
        return get_peft_model(model, LORA).merge_and_unload()
    if kind == "accelerate":
        from accelerate import Accelerator

        return Accelerator(cpu=True).prepare(model)
    from torch.distributed.fsdp import fully_shard

    for block in model.model.layers:
        fully_shard(block, mesh=torch.distributed.init_device_mesh("cpu", (1,)))
    return fully_shard(model, mesh=torch.distributed.init_device_mesh("cpu", (1,)))


LORA = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], exclude_modules=EXCLUDE_MODULES)
KINDS = ["compile", "DDP", "PEFT twice", "DDP of PEFT", "merged", "accelerate", "fully_shard"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", compiled_is_slow(KINDS))
def test_everything_is_done_through_wrappers_of_the_whole_model(
    kind: str, bank: Any, tmp_path: Path, one_rank: Any
) -> None:
    plain, ids = grafted(bank), prompts()
    whole = load_file(save_graft(plain, tmp_path / "plain") / "graft.safetensors")
    model = whole_wrapped(grafted(bank), kind)
    torch.testing.assert_close(model(ids).logits, plain(ids).logits, atol=1e-6, rtol=0)
    mark_trainable(model)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    grafts = [name for name in trained if ".memgraft." in name]
    assert len(grafts) == sum(1 for name, _ in plain.named_parameters() if ".memgraft." in name)
    assert all("lora_" in name for name in set(trained) - set(grafts))
    assert ("PEFT" in kind) == (len(trained) > len(grafts))
    assert sum(len(group["params"]) for group in optimizer_groups(model, lr=1e-3)) == len(trained)
    gather = (lambda tensor: tensor.full_tensor()) if kind == "fully_shard" else None
    saved = load_file(save_graft(model, tmp_path / "graft", gather=gather) / "graft.safetensors")
    assert saved.keys() == whole.keys()
    assert all(torch.equal(saved[key], whole[key]) for key in whole)
    fresh = load_graft(Bare(recipient()), tmp_path / "graft", bank=bank)
    assert torch.equal(fresh(ids).logits, plain(ids).logits)
    options = {"max_new_tokens": 3, "do_sample": False}
    generating = unwrap(model)
    assert torch.equal(generating.generate(ids, **options), plain.generate(ids, **options))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT reads transformers' old name
@pytest.mark.parametrize("outside", [False, True], ids=["in_place", "wrapped"])
def test_adapters_go_on_training_behind_a_wrapper(bank: Any, outside: bool) -> None:
    model: Any = grafted(bank)
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], exclude_modules=EXCLUDE_MODULES)
    if outside:
        model = Bare(get_peft_model(model, lora))
    else:
        inject_adapter_in_model(lora, model)  # what transformers' own add_adapter does
    mark_trainable(model)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert any("lora_" in name for name in trained)
    assert any("memgraft" in name for name in trained)
    assert all("lora_" in name or "memgraft" in name for name in trained)


@pytest.mark.parametrize("rows", [VOCAB + 3, VOCAB + 24])
def test_tokens_added_after_the_graft_are_misses_everywhere(bank: Any, tmp_path: Path, rows: int) -> None:
    model = grafted(bank)
    saved_before = save_graft(model, tmp_path / "before")
    model.resize_token_embeddings(rows)
    ids = torch.tensor([[5, rows - 1, 7, 8]])
    looked_up = model(ids).logits
    torch.testing.assert_close(looked_up, model(**GraftCollator(bank)([{"input_ids": ids[0]}])).logits)
    assert (model.generate(ids, max_new_tokens=4, do_sample=False)[:, :4] == ids).all()
    for saved in (saved_before, save_graft(model, tmp_path / "after")):
        other = recipient()
        other.resize_token_embeddings(rows)
        other.load_state_dict(model.state_dict(), strict=False)
        assert torch.equal(load_graft(other, saved, bank=bank)(ids).logits, looked_up)


def test_a_bank_may_know_ids_that_the_recipient_lacks_if_no_key_holds_them(bank: Any) -> None:
    largest = int(bank.keys.arrays().tokens.max())
    wake(graft(recipient(vocab_size=largest + 1), bank, config()))(prompts().clamp_max(largest))
    with pytest.raises(ConfigError, match=f"holds token {largest}"):
        graft(recipient(vocab_size=largest), bank, config())


@pytest.mark.parametrize("use_orig_params", [True, False])
@pytest.mark.filterwarnings("ignore")
def test_sharded_by_fsdp_1(use_orig_params: bool, bank: Any, tmp_path: Path, one_rank: Any) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    model, ids = grafted(bank), prompts()
    expected = model(ids, use_cache=False).logits
    wrapped = FullyShardedDataParallel(
        model,
        auto_wrap_policy=ModuleWrapPolicy({LlamaDecoderLayer}),
        device_id=torch.device("cpu"),
        use_orig_params=use_orig_params,
    )
    torch.testing.assert_close(wrapped(ids, use_cache=False).logits, expected, atol=1e-6, rtol=0)
    if use_orig_params:
        mark_trainable(wrapped)
        trained = [name for name, parameter in wrapped.named_parameters() if parameter.requires_grad]
        assert trained
        assert all(".memgraft." in name for name in trained)
        assert sum(len(group["params"]) for group in optimizer_groups(wrapped, lr=1e-3)) == len(trained)
    else:
        before = [parameter.requires_grad for parameter in wrapped.parameters()]
        for call in (mark_trainable, lambda model: optimizer_groups(model, lr=1e-3), parameter_counts):
            with pytest.raises(GraftError, match="use_orig_params=True"):
                call(wrapped)
        assert [parameter.requires_grad for parameter in wrapped.parameters()] == before
    with FullyShardedDataParallel.summon_full_params(wrapped):
        save_graft(wrapped, tmp_path / "graft")
    fresh = load_graft(recipient(), tmp_path / "graft", bank=bank)
    torch.testing.assert_close(fresh(ids, use_cache=False).logits, expected, atol=1e-6, rtol=0)


@pytest.mark.filterwarnings("ignore")  # of transformers and PEFT, about names of theirs
def test_virtual_tokens_are_refused_and_other_adapters_work(bank: Any) -> None:
    virtual: dict[str, Any] = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 3}
    with pytest.raises(GraftError, match=r"PEFT's prompt tuning .* its virtual tokens have no ids: use a LoRA"):
        get_peft_model(grafted(bank), PromptTuningConfig(**virtual))(prompts())
    with pytest.raises(GraftError, match="the cache holds 3 positions, the graft 'default' saw none of them"):
        get_peft_model(grafted(bank), PrefixTuningConfig(**virtual))(prompts())
    scaled = IA3Config(
        task_type="CAUSAL_LM", target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
    )
    model, expected = get_peft_model(grafted(bank), scaled), grafted(bank)(prompts()).logits
    assert torch.equal(model(prompts()).logits, expected)  # its scales begin at 1
