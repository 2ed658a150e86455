"""Grafted models on a card: a training step as on the CPU, generation in every mode, compile, sharding, placement."""

from __future__ import annotations

import copy
import os
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

from grafted_models import FAMILIES, full_logits, grafted, prompts, run
from memgraft.data import MemoryBatch
from memgraft.data.segments import from_batch
from memgraft.integrations.transformers import graft_layers, optimizer_groups


def memory_of(bank: Any, ids: torch.Tensor) -> MemoryBatch:
    return MemoryBatch.look_up(bank, ids, from_batch({"input_ids": ids})).stage(bank)


def set_kernel(model: Any, fused: bool) -> Any:
    for layers in graft_layers(model).values():
        for layer in layers.values():
            layer.kernel = fused
    return model


def steps(model: Any, bank: Any, device: str, count: int = 3) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of ``count`` steps and the parameters after them."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for seed in range(count):
        ids = prompts(4, 24, seed=seed)
        loss = model(ids.to(device), labels=ids.to(device), memgraft=memory_of(bank, ids).to(device)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    return losses, {name: parameter.detach().cpu() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text", "gpt2"])
def test_training_steps_are_those_of_the_cpu(family: str, fused: bool, bank: Any) -> None:
    model = grafted(bank, family).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    on_card = set_kernel(copy.deepcopy(model).cuda(), fused)
    expected, weights = steps(model, bank, "cpu")
    found, moved = steps(on_card, bank, "cuda")
    assert found == pytest.approx(expected, abs=1e-5)
    for name, right in weights.items():
        torch.testing.assert_close(
            moved[name], right, atol=2e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("fused", [False, True])
def test_narrow_rows_reach_the_card_whole(fused: bool, stored: Any) -> None:
    ids = prompts()
    memory = memory_of(stored, ids)
    moved = memory.to("cuda")
    torch.testing.assert_close(moved.floats().cpu(), memory.floats(), atol=0, rtol=0)
    model = grafted(stored).eval()
    with torch.no_grad():
        expected = model(ids, memgraft=memory, use_cache=False).logits
        found = set_kernel(model.cuda(), fused)(ids.cuda(), memgraft=moved, use_cache=False).logits
    torch.testing.assert_close(found.cpu(), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "deepseek_v3"])
def test_cached_generation_is_the_uncached(family: str, fused: bool, bank: Any) -> None:
    model = set_kernel(grafted(bank, family).cuda(), fused)
    sequences, logits = run(model, prompts().cuda())
    torch.testing.assert_close(logits, full_logits(model, sequences), atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3},
        {"do_sample": True, "num_return_sequences": 3},
        {"cache_implementation": "static", "disable_compile": True},
        {"cache_implementation": "static"},
        {"prompt_lookup_num_tokens": 3},
        {"assistant_early_exit": 2},
    ],
    ids=lambda options: ",".join(f"{k}={v}" for k, v in options.items()),
)
@pytest.mark.parametrize("fused", [False, True])
def test_every_decoding_mode(options: dict[str, Any], fused: bool, bank: Any) -> None:
    model = set_kernel(grafted(bank).cuda(), fused)
    one = "prompt_lookup_num_tokens" in options or "assistant_early_exit" in options
    ids = prompts(1 if one else 2).cuda()
    torch.manual_seed(0)
    if "num_beams" in options:
        cached, whole = (
            model.generate(ids, max_new_tokens=24, do_sample=False, use_cache=use, **options) for use in (True, False)
        )
        assert torch.equal(cached, whole)
        return
    sequences, logits = run(model, ids, **options)
    torch.testing.assert_close(logits, full_logits(model, sequences), atol=5e-5, rtol=0)


def test_left_padding(bank: Any) -> None:
    model = grafted(bank).cuda()
    ids = prompts(2, 20).cuda()
    mask = torch.ones_like(ids)
    mask[1, :7] = 0
    ids[1, :7] = 0
    together = model.generate(ids, attention_mask=mask, max_new_tokens=24, do_sample=False)
    alone = model.generate(ids[1:, 7:], max_new_tokens=24, do_sample=False)
    assert torch.equal(together[1, 20:], alone[0, 13:])


@pytest.mark.parametrize("fused", [False, True])
def test_compiled_training_has_no_breaks(fused: bool, bank: Any) -> None:
    torch._dynamo.reset()
    model = set_kernel(grafted(bank).cuda().train(), fused)
    compiled = torch.compile(model, fullgraph=True)
    for seed in range(3):
        ids = prompts(seed=seed)
        memory = memory_of(bank, ids).to("cuda")
        gradients = []
        for call in (compiled, model):
            model.zero_grad()
            call(input_ids=ids.cuda(), labels=ids.cuda(), memgraft=memory, use_cache=False).loss.backward()
            gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        for name, right in gradients[1].items():
            torch.testing.assert_close(
                gradients[0][name], right, atol=1e-5, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}"
            )
    torch._dynamo.reset()


def test_a_decode_step_in_a_cuda_graph(bank: Any) -> None:
    """The memory is looked up and staged outside; what is captured reads it from fixed places."""
    model = grafted(bank).cuda()
    ids = prompts(2, 12)
    memory = memory_of(bank, ids).to("cuda")
    tokens = ids.cuda()

    def step() -> torch.Tensor:
        return model(tokens, memgraft=memory, use_cache=False).logits

    with torch.no_grad():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        recorded = torch.cuda.CUDAGraph()
        with torch.cuda.graph(recorded):
            logits = step()
        # Other values in the same places: a graph that had copied them would answer as before.
        assert memory.values is not None
        memory.values.mul_(-3)
        recorded.replay()
        expected = step()
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


def test_fsdp2_on_one_card(bank: Any) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29613", RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    torch.cuda.set_device(0)
    dist.init_process_group("nccl", rank=0, world_size=1)
    try:
        model = grafted(bank).cuda().train()
        ids = prompts()
        memory = memory_of(bank, ids).to("cuda")
        expected = model(ids.cuda(), labels=ids.cuda(), memgraft=memory).loss
        expected.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        for block in model.model.layers:
            fully_shard(block)
        fully_shard(model)
        assert optimizer_groups(model, lr=1e-3)
        loss = model(ids.cuda(), labels=ids.cuda(), memgraft=memory).loss
        loss.backward()
        torch.testing.assert_close(loss.detach(), expected.detach(), atol=1e-6, rtol=0)
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                torch.testing.assert_close(parameter.grad.full_tensor(), gradients[name], atol=1e-5, rtol=1e-4)
    finally:
        dist.destroy_process_group()


def test_offloaded_blocks(bank: Any, tmp_path: Any) -> None:
    """accelerate's device map with a part of the model on the host."""
    from accelerate import dispatch_model

    model = grafted(bank)
    ids = prompts()
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
    places = {name: "cpu" if name.startswith("model.layers.1") else 0 for name, _ in model.named_children()}
    places = {"model.embed_tokens": 0, "model.layers.0": 0, "model.layers.1": "cpu", "model.layers.2": 0,
              "model.norm": 0, "model.rotary_emb": 0, "lm_head": 0}  # fmt: skip
    placed = dispatch_model(model, device_map=places)
    with torch.no_grad():
        found = placed(ids.cuda(), use_cache=False).logits
    torch.testing.assert_close(found.cpu(), expected, atol=2e-5, rtol=0)
