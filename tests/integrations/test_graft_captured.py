"""A decoding step in fixed places: what a CUDA graph records, run here without one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from transformers import StaticCache

from grafted_models import CACHE, grafted, make_bank, prompts
from memgraft.errors import ArgumentError, GraftError
from memgraft.torch import CapturedStep, detach, disabled

NEW = 12
# What waits for a device, or has a shape that the device's numbers decide.
WAITS = ("_local_scalar_dense", "item", "nonzero", "unique", "masked_select", "is_nonzero")


def filled(model: Any, ids: torch.Tensor, **options: Any) -> tuple[StaticCache, torch.Tensor]:
    """A static cache that holds the prompts, and the logits after them."""
    cache = StaticCache(config=model.config, max_cache_len=64)
    with torch.no_grad():
        logits = model(ids, **{CACHE: cache}, use_cache=True, **options).logits[:, -1]
    return cache, logits


def decoded(model: Any, step: CapturedStep, logits: torch.Tensor, count: int = NEW) -> torch.Tensor:
    """Greedy tokens, the first from ``logits``."""
    found = [logits.argmax(-1)]
    for _ in range(count - 1):
        found.append(step(found[-1]).argmax(-1))
    return torch.stack(found, dim=1)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {}), ("gpt2", {}), ("qwen3", {}), ("olmo2", {}), ("llama", {"into": "values"}),
        ("gpt2", {"into": "values"}), ("llama", {"into": "values", "gate": "none"}), ("llama", {"gate": "none"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value.values()) or "residual",
)  # fmt: skip
def test_steps_are_those_of_generate(family: str, options: dict[str, str], bank: Any) -> None:
    model, ids = grafted(bank, family, **options), prompts(3, 9)
    cache, logits = filled(model, ids)
    step = CapturedStep(model, cache)
    expected = model.generate(ids, max_new_tokens=NEW, do_sample=False)[:, 9:]
    assert torch.equal(decoded(model, step, logits), expected)
    assert not step.recorded


@pytest.mark.parametrize("into", ["residual", "values"])
def test_logits_are_those_of_one_forward_with_padding(into: str, bank: Any) -> None:
    model, ids = grafted(bank, into=into), prompts(2, 10)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    cache, _ = filled(model, ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp_min(0))
    step = CapturedStep(model, cache, attention_mask=mask)
    more = prompts(2, NEW, seed=5)
    found = torch.stack([step(more[:, t : t + 1]).clone() for t in range(NEW)], dim=1)
    with torch.no_grad():
        alone = model(torch.cat([ids, more], dim=1)[1:, 4:], use_cache=False).logits[0, -NEW:]
        whole = model(torch.cat([ids, more], dim=1)[:1], use_cache=False).logits[0, -NEW:]
    torch.testing.assert_close(found[1], alone, atol=2e-6, rtol=0)
    torch.testing.assert_close(found[0], whole, atol=2e-6, rtol=0)


def test_memories_by_row(bank: Any, tmp_path: Any) -> None:
    other = make_bank(tmp_path / "other", seed=9)
    model, ids = grafted(bank), prompts(2, 9)
    cache, logits = filled(model, ids, memgraft=[None, other])
    step = CapturedStep(model, cache, memgraft=[None, other])
    expected = model.generate(ids, max_new_tokens=NEW, do_sample=False, memgraft=[None, other])[:, 9:]
    assert torch.equal(decoded(model, step, logits), expected)


@pytest.mark.parametrize("control", ["fallback_only", "trainable", "shuffled", "no_memory"])
def test_controls(control: str, bank: Any) -> None:
    model, ids = grafted(bank, control=control), prompts(2, 9)
    cache, logits = filled(model, ids)
    expected = model.generate(ids, max_new_tokens=NEW, do_sample=False)[:, 9:]
    assert torch.equal(decoded(model, CapturedStep(model, cache), logits), expected)


def test_places_stay_and_a_cache_filled_anew_goes_on(bank: Any) -> None:
    model, ids = grafted(bank), prompts(2, 9)
    cache, logits = filled(model, ids)
    step = CapturedStep(model, cache)
    places = {site: window.data_ptr() for site, window in cache.memgraft_states["default"].conv.items()}
    decoded(model, step, logits)
    assert {site: window.data_ptr() for site, window in cache.memgraft_states["default"].conv.items()} == places
    assert len(places) == 2
    expected = model.generate(ids, max_new_tokens=NEW, do_sample=False)[:, 9:]
    cache.reset()
    with torch.no_grad():
        logits = model(ids, **{CACHE: cache}, use_cache=True).logits[:, -1]
    assert torch.equal(decoded(model, step, logits), expected)


class Seen(TorchDispatchMode):
    """Collects the operations that reach the tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.__name__.split(".")[0])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("into", ["residual", "values"])
def test_nothing_in_the_step_waits_for_the_device(into: str, bank: Any, monkeypatch: Any) -> None:
    """The model's call on tensors of a card that is not there: a wait, or a tensor of the host, would raise."""
    model, ids = grafted(bank, into=into), prompts(2, 9)
    cache, logits = filled(model, ids)
    step, given = CapturedStep(model, cache), {}
    forward = type(model).forward

    def keep(self: Any, **inputs: Any) -> Any:
        given.update(inputs)
        return forward(self, **inputs)

    monkeypatch.setattr(type(model), "forward", keep)
    step(logits.argmax(-1))
    with Seen() as seen:
        step(logits.argmax(-1))
    monkeypatch.undo()
    assert "index_copy_" in seen.names
    assert {CACHE, "memgraft", "input_ids"} <= given.keys()

    mode, places = FakeTensorMode(), {}

    def on_a_card(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) not in places:
            with mode:
                there = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cuda:0")
            places[id(value)] = value, there
        return places[id(value)][1]

    side = given["memgraft"].by_name["default"]
    for name in ("values", "inverse", "orders", "tokens", "segments"):
        setattr(side, name, on_a_card(getattr(side, name)))
    side.kept = set()
    side.state.conv = tree_map(on_a_card, side.state.conv)
    for layer in cache.layers:
        for name in ("keys", "values", "cumulative_length"):
            setattr(layer, name, on_a_card(getattr(layer, name)))
        layer.device = torch.device("cuda:0")
    inputs = {name: value if name == CACHE else tree_map(on_a_card, value) for name, value in given.items()}
    weights = {name: on_a_card(tensor) for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    with mode, torch.no_grad(), Seen() as seen:
        out = functional_call(model, weights, kwargs=inputs)
    assert out.logits.device == torch.device("cuda:0")
    assert not {name for name in seen.names if name.startswith(WAITS)}


@pytest.mark.slow
def test_the_step_is_one_whole_graph(bank: Any) -> None:
    torch._dynamo.reset()
    model, ids = grafted(bank, model_options={"num_hidden_layers": 1}, sites=(0,)), prompts(2, 9)
    cache, logits = filled(model, ids)
    expected = model.generate(ids, max_new_tokens=4, do_sample=False)[:, 9:]
    model.forward = torch.compile(model.forward, fullgraph=True, backend="aot_eager")
    assert torch.equal(decoded(model, CapturedStep(model, cache), logits, 4), expected)
    torch._dynamo.reset()


def test_what_is_refused(bank: Any) -> None:
    model, ids = grafted(bank), prompts(2, 9)
    cache, logits = filled(model, ids)
    step = CapturedStep(model, cache)
    with pytest.raises(ArgumentError, match=r"one token a sequence, .* found \(2, 3\)"):
        step(ids[:, :3])
    step(logits.argmax(-1))
    with disabled(model), pytest.raises(GraftError, match="switched off"):
        step(logits.argmax(-1))
    dynamic = model(ids, use_cache=True)[CACHE]
    with pytest.raises(GraftError, match=r"expected a StaticCache .* found DynamicLayer"):
        CapturedStep(model, dynamic)
    sliding = grafted(bank, "gemma3_text")
    with pytest.raises(GraftError, match=r"found .*StaticSliding"):
        CapturedStep(sliding, filled(sliding, ids)[0])
    with pytest.raises(GraftError, match="with a graft"):
        CapturedStep(detach(model), cache)
