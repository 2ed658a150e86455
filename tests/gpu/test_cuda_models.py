"""Grafted models on a card: a training step as on the CPU, generation in every mode, compile, sharding, placement."""

from __future__ import annotations

import copy
import logging
import os
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from transformers import StaticCache

from grafted_models import CACHE, FAMILIES, full_logits, grafted, prompts, run
from memgraft.data import MemoryBatch
from memgraft.data.segments import from_batch
from memgraft.integrations.transformers import graft_layers, optimizer_groups
from memgraft.torch import CapturedStep


def memory_of(bank: Any, ids: torch.Tensor) -> MemoryBatch:
    return MemoryBatch.look_up(bank, ids, from_batch({"input_ids": ids})).stage(bank)


def set_kernel(model: Any, fused: bool | None) -> Any:
    for layers in graft_layers(model).values():
        for layer in layers.values():
            layer.kernel = fused
    return model


def steps(model: Any, bank: Any, device: str, count: int = 3) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of ``count`` steps and how far they moved the parameters."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    before = {name: parameter.detach().cpu().clone() for name, parameter in model.named_parameters()}
    losses = []
    for seed in range(count):
        ids = prompts(4, 24, seed=seed)
        loss = model(ids.to(device), labels=ids.to(device), memgraft=memory_of(bank, ids).to(device)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses, {name: parameter.detach().cpu() - before[name] for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text", "gpt2"])
def test_training_steps_are_those_of_the_cpu(family: str, fused: bool, bank: Any) -> None:
    model = grafted(bank, family).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    on_card = set_kernel(copy.deepcopy(model).cuda(), fused)
    expected, moves = steps(model, bank, "cpu")
    found, moved = steps(on_card, bank, "cuda")
    assert found == pytest.approx(expected, abs=1e-4)
    for name, right in moves.items():
        # Sums in another order: relative to the step, which a wrong gradient would miss by much.
        assert float((moved[name] - right).norm()) <= 2e-3 * float(right.norm()) + 1e-6, name


def test_the_kernel_is_taken_by_itself(bank: Any, caplog: Any) -> None:
    # A shape of its own, so that its self-check is made and told here.
    model = grafted(bank, conv_dilation=2).cuda().train()
    ids = prompts()
    with caplog.at_level(logging.INFO, "memgraft"):
        model(ids.cuda(), labels=ids.cuda(), memgraft=memory_of(bank, ids).to("cuda")).loss.backward()
    assert [record.getMessage().split(" on ")[0] for record in caplog.records] == ["gate and mix by the fused kernel"]
    assert "fused kernel where its self-check agrees" in repr(model)


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
    torch.testing.assert_close(found.cpu(), expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "deepseek_v3"])
def test_cached_generation_is_the_uncached(family: str, fused: bool, bank: Any) -> None:
    model = set_kernel(grafted(bank, family).cuda(), fused)
    sequences, logits = run(model, prompts().cuda())
    torch.testing.assert_close(logits, full_logits(model, sequences), atol=2e-4, rtol=0)


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
    torch.testing.assert_close(logits, full_logits(model, sequences), atol=2e-4, rtol=0)


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
    # One block: a compiler takes a while for each.
    model = grafted(bank, model_options={"num_hidden_layers": 1}, sites=(0,)).cuda().train()
    compiled = torch.compile(set_kernel(model, fused), fullgraph=True)
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
                gradients[0][name], right, atol=1e-4, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}"
            )
    torch._dynamo.reset()


@pytest.mark.parametrize("fused", [None, False])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
def test_a_decode_step_in_a_cuda_graph(family: str, fused: bool | None, bank: Any) -> None:
    """Over many tokens what the uncaptured step gives; a cache that is filled anew goes on with the same graph."""
    model = set_kernel(grafted(bank, family).cuda(), fused)
    cache = StaticCache(config=model.config, max_cache_len=96)
    step = None
    for seed in range(2):
        ids = prompts(3, 12, seed=seed).cuda()
        expected = run(model, ids, max_new_tokens=64)
        cache.reset()
        with torch.no_grad():
            logits = model(ids, **{CACHE: cache}, use_cache=True).logits[:, -1]
        step = CapturedStep(model, cache) if step is None else step
        found = [logits, *(step(expected[0][:, 12 + t]).clone() for t in range(63))]
        assert step.recorded
        torch.testing.assert_close(torch.stack(found, dim=1), expected[1].float(), atol=2e-4, rtol=0)


def test_fsdp2_on_one_card(bank: Any) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29613", RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    torch.cuda.set_device(0)
    dist.init_process_group("nccl", rank=0, world_size=1, device_id=torch.device("cuda", 0))
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
        torch.testing.assert_close(loss.detach(), expected.detach(), atol=1e-5, rtol=0)
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                torch.testing.assert_close(parameter.grad.full_tensor(), gradients[name], atol=1e-4, rtol=1e-3)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("away", [(1,), (1, 2)], ids=["a block between", "a site too"])
def test_offloaded_blocks(away: tuple[int, ...], bank: Any) -> None:
    """accelerate's device map with a part of the model on the host."""
    from accelerate import dispatch_model

    model = grafted(bank)
    ids = prompts()
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
    places: dict[str, Any] = {f"model.layers.{n}": "cpu" if n in away else 0 for n in range(3)}
    places |= {"model.embed_tokens": 0, "model.norm": 0, "model.rotary_emb": 0, "lm_head": 0}
    placed = dispatch_model(model, device_map=places)
    with torch.no_grad():
        found = placed(ids.cuda(), use_cache=False).logits
    torch.testing.assert_close(found.cpu(), expected, atol=2e-4, rtol=0)
