"""torch.compile: no breaks, nothing compiled again after the second shape, the same numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import CompileConfig

from grafted_models import grafted, prompts
from memgraft.data import MemoryBatch
from memgraft.data.segments import from_batch

pytestmark = [
    pytest.mark.slow,
    # Inductor's own modules, while they are imported.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_training_has_no_breaks_and_stops_recompiling(backend: str, bank: Any) -> None:
    # One block is what inductor has time for; the other backend takes two sites.
    small: dict[str, Any] = {"model_options": {"num_hidden_layers": 1}, "sites": (0,)} if backend == "inductor" else {}
    model = grafted(bank, **small).train()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    graphs = []
    for seed in range(6):
        ids = prompts(seed=seed)
        memory = MemoryBatch.look_up(bank, ids, from_batch({"input_ids": ids})).stage(bank)
        gradients = []
        for run in (compiled, model):
            model.zero_grad()
            run(input_ids=ids, labels=ids, memgraft=memory, use_cache=False).loss.backward()
            gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        assert gradients[0].keys() == gradients[1].keys()
        for name, got in gradients[0].items():
            torch.testing.assert_close(
                got, gradients[1][name], atol=1e-6, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
            )
        graphs.append(counters["stats"]["unique_graphs"])
    # The second batch makes the numbers of rows and misses dynamic; after that nothing is compiled again.
    assert graphs[1] <= 2
    assert graphs[1:] == [graphs[1]] * 5


# Dynamo looks for gradients where it goes on after a break.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_a_lookup_inside_a_compiled_call_is_stepped_over(bank: Any) -> None:
    # As under TrainingArguments(torch_compile=True), where nobody stages the batch.
    model = grafted(bank, model_options={"num_hidden_layers": 1}, sites=(0,)).train()
    compiled = torch.compile(model, backend="aot_eager")
    for seed in range(3):
        ids = prompts(seed=seed)
        memory = MemoryBatch.look_up(bank, ids, from_batch({"input_ids": ids}))
        expected = model(input_ids=ids, use_cache=False).logits
        for options in ({"memgraft": memory}, {}):
            got = compiled(input_ids=ids, use_cache=False, **options).logits
            torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


def test_compiled_static_cache_decoding(bank: Any) -> None:
    model = grafted(bank)
    ids = prompts()
    expected = model.generate(ids, max_new_tokens=12, do_sample=False)
    compiled = grafted(bank)
    compiled.forward = torch.compile(compiled.forward, backend="aot_eager")
    got = compiled.generate(ids, max_new_tokens=12, do_sample=False, cache_implementation="static")
    assert torch.equal(got, expected)


def test_decoding_that_transformers_compiles_itself(bank: Any) -> None:
    model = grafted(bank)
    settings = CompileConfig(mode="default")
    settings._compile_all_devices = True  # else only accelerators are compiled for
    graphs = []
    for seed in range(3):
        ids = prompts(seed=seed)
        expected = model.generate(ids, max_new_tokens=24, do_sample=False)
        got = model.generate(
            ids, max_new_tokens=24, do_sample=False, cache_implementation="static", compile_config=settings
        )
        assert torch.equal(got, expected)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] > 0
    # Steps hit and miss as they come, in every number; all are one shape.
    assert graphs == [graphs[0]] * 3
    assert not counters["graph_break"]
