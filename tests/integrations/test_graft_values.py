"""Memory into the values of attention: where it goes, its cache, what is refused (decoding: test_graft_generation)."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from test_graft_families import MORE, logits_of, packed_and_separate
from torch.utils.checkpoint import checkpoint

from grafted_models import CACHE, config, grafted, prompts, recipient, wake
from memgraft.config import GraftConfig
from memgraft.data import MemoryBatch
from memgraft.data.segments import from_batch
from memgraft.errors import ConfigError, GraftError
from memgraft.integrations.transformers.values import ValueHook, value_projection
from memgraft.nn.naive import naive_graft
from memgraft.torch import detach, disabled, graft, graft_layers, load_graft, mark_trainable, save_graft

NEW = 12
TOLERANCE = {"atol": 1e-6, "rtol": 0}
# A projection of values alone, one with queries and keys (GPT-2, Phi-3), experts, a window, a hybrid.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {}, "gpt2": {}, "phi3": MORE["phi3"], "mistral": MORE["mistral"], "qwen3_moe": MORE["qwen3_moe"],
    "qwen3_next": {**MORE["qwen3_next"], "sites": (1,)}, "falcon_h1": MORE["falcon_h1"],
}  # fmt: skip
QUICK = {"llama", "gpt2"}


def with_values(bank: Any, family: str = "llama", **overrides: Any) -> Any:
    options = dict(FAMILIES.get(family, {}))
    sites = options.pop("sites", (0, 2))
    return wake(graft(recipient(family, **options), bank, config(into="values", sites=sites, **overrides)))


@torch.no_grad()
def by_hand(model: Any, bank: Any, ids: torch.Tensor) -> torch.Tensor:
    """Logits with the memory off and the naive twin of each layer added by hooks of our own."""
    segments = from_batch({"input_ids": ids}, eos_id=model.config.eos_token_id)
    found = MemoryBatch.look_up(bank, ids, segments).stage(bank)
    handles, hidden = [], {}
    blocks = model.get_decoder().layers if hasattr(model.get_decoder(), "layers") else model.get_decoder().h
    for site, layer in graft_layers(model)["default"].items():
        place = value_projection(blocks[site], site)

        def before(module: Any, args: Any, kwargs: Any, site: int = site) -> None:
            hidden[site] = args[0] if args else kwargs["hidden_states"]

        def after(
            module: Any, args: Any, out: Any, site: int = site, layer: Any = layer, start: int = place.start
        ) -> Any:
            values = naive_graft(
                layer, hidden[site], found.values[:, 0].float(), found.inverse, segments, ids, out[..., start:]
            )
            return torch.cat([out[..., :start], values], dim=-1)

        handles.append(blocks[site].register_forward_pre_hook(before, with_kwargs=True))
        handles.append(place.module.register_forward_hook(after))
    with disabled(model):
        logits = model(ids, use_cache=False).logits
    for handle in handles:
        handle.remove()
    return logits


@pytest.mark.parametrize("gate", ["plain", "none"])
@pytest.mark.parametrize("family", [pytest.param(f, marks=[] if f in QUICK else pytest.mark.slow) for f in FAMILIES])
def test_the_memory_goes_into_the_values_and_nowhere_else(family: str, gate: str, bank: Any) -> None:
    model, ids = with_values(bank, family, gate=gate), prompts()
    with torch.no_grad():
        plain = recipient(family, **{k: v for k, v in FAMILIES[family].items() if k != "sites"})(ids).logits
        logits = model(ids, use_cache=False).logits
    assert (logits - plain).abs().max() > 0.01
    torch.testing.assert_close(logits, by_hand(model, bank, ids), atol=1e-5, rtol=1e-5)
    with torch.no_grad(), disabled(model):
        assert torch.equal(model(ids).logits, plain)
    with torch.no_grad():
        assert torch.equal(model(ids, memgraft=False).logits, plain)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_decodes_as_the_full_forward(family: str, bank: Any) -> None:
    model, ids = with_values(bank, family), prompts()
    with torch.no_grad(), disabled(model):
        packed, separate = packed_and_separate(model)
    with torch.no_grad():
        if (packed - separate).abs().max() < 1e-6:
            torch.testing.assert_close(*packed_and_separate(model), **TOLERANCE)
        sequences, logits = logits_of(model, ids)
        torch.testing.assert_close(logits, model(sequences, use_cache=False).logits[:, -NEW - 1 : -1], **TOLERANCE)
        static = logits_of(model, ids, cache_implementation="static", disable_compile=True)
        torch.testing.assert_close(static[1], logits, **TOLERANCE)
        padded = torch.cat([torch.zeros(2, 5, dtype=torch.int64), ids], dim=1)
        mask = (torch.arange(padded.shape[1]) >= 5).long().expand_as(padded).contiguous()
        torch.testing.assert_close(logits_of(model, padded, attention_mask=mask)[1], logits, **TOLERANCE)
        beams = [model.generate(ids, max_new_tokens=NEW, num_beams=4, use_cache=cached) for cached in (True, False)]
        assert torch.equal(*beams)
    model.train()
    model(ids, labels=ids).loss.backward()
    assert [name for name, p in model.named_parameters() if ".memgraft." in name and p.grad is None] == []


@torch.no_grad()
def test_the_cache_holds_the_added_part(bank: Any) -> None:
    model, ids = with_values(bank), prompts()
    whole = getattr(model(ids, use_cache=True), CACHE)
    cache = getattr(model(ids[:, :9], use_cache=True), CACHE)
    for place in range(9, ids.shape[1]):
        cache = getattr(model(ids[:, place : place + 1], **{CACHE: cache}), CACHE)
    with disabled(model):
        without = getattr(model(ids, use_cache=True), CACHE)
    for block in range(3):
        torch.testing.assert_close(cache.layers[block].values, whole.layers[block].values, **TOLERANCE)
    assert torch.equal(whole.layers[0].keys, without.layers[0].keys), "keys of the first block hold no memory"
    assert (whole.layers[0].values - without.layers[0].values).abs().max() > 0.1


@pytest.mark.parametrize("gate", ["plain", "none"])
@torch.no_grad()
def test_no_position_sees_a_later_token(gate: str, bank: Any) -> None:
    model, ids = with_values(bank, gate=gate), prompts(1)
    changed = ids.clone()
    changed[:, 12:] = (changed[:, 12:] + 5 - 3) % 37 + 3
    one, other = model(ids).logits, model(changed).logits
    torch.testing.assert_close(one[:, :12], other[:, :12], **TOLERANCE)
    assert (one[:, 12:] - other[:, 12:]).abs().max() > 0.01


@pytest.mark.parametrize("into", ["residual", "values"])
@pytest.mark.parametrize("gate", ["plain", "none"])
@pytest.mark.parametrize("init", ["zero", "scalar"])
def test_attaching_changes_nothing_and_learns(into: str, gate: str, init: str, bank: Any) -> None:
    model, ids = recipient(), prompts()
    plain = model(ids).logits
    graft(model, bank, config(into=into, gate=gate, init=init))
    assert torch.equal(model(ids).logits, plain)
    mark_trainable(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimizer.step()
    assert not torch.equal(model(ids).logits, plain)


def test_saved_and_loaded_it_is_the_same(bank: Any, tmp_path: Any) -> None:
    model, ids = with_values(bank, gate="none"), prompts()
    folder = save_graft(model, tmp_path / "graft", bank_path=str(bank.path))
    again = load_graft(recipient(), folder)
    assert torch.equal(again(ids).logits, model(ids).logits)
    card = (folder / "README.md").read_text()
    assert "scaled and added to the values of the attention of block(s) 0, 2." in card
    (layer, _) = graft_layers(again)["default"].values()
    assert layer.memory_value.weight.shape == (16, 24), "two heads of eight channels"
    assert (layer.memory_key, layer.key_norm) == (None, None)
    other = load_graft(grafted(bank, into="residual"), folder, name="second")
    assert set(graft_layers(other)) == {"default", "second"}


def test_it_comes_off_and_leaves_the_others(bank: Any) -> None:
    model, ids = recipient(), prompts()
    wake(graft(model, bank, config(sites=(0,)), name="first"))
    alone = model(ids).logits
    wake(graft(model, bank, config(sites=(0, 1), into="values"), name="second"))
    both = model(ids).logits
    assert not torch.allclose(both, alone, atol=1e-3)
    copied = copy.deepcopy(model)
    assert torch.equal(copied(ids).logits, both)
    detach(model, "second")
    assert torch.equal(model(ids).logits, alone)
    assert not [hook for module in model.modules() for hook in module._forward_hooks.values()]
    assert torch.equal(copied(ids).logits, both)
    detach(copied)
    assert torch.equal(copied(ids).logits, recipient()(ids).logits)
    assert not [hook for module in copied.modules() for hook in module._forward_hooks.values()]


def test_recomputation_of_whole_blocks_is_exact_and_of_parts_is_refused(bank: Any) -> None:
    model, ids = with_values(bank).train(), prompts()
    gradients = []
    for recompute in (False, True):
        if recompute:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        model.zero_grad()
        model(ids, labels=ids, use_cache=False).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, atol=1e-6, rtol=1e-5)
    enable({"use_reentrant": True})
    with pytest.raises(GraftError, match="not reentrant"):
        model(ids, labels=ids, use_cache=False)
    (getattr(model, "activation_checkpointing_disable", None) or model.gradient_checkpointing_disable)()
    attention = model.model.layers[0].self_attn
    attention.forward = functools.partial(checkpoint, attention.forward, use_reentrant=False)
    loss = model(ids, labels=ids, use_cache=False).loss
    with pytest.raises(GraftError, match="outside of the block's own call"):
        loss.backward()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_lora_on_the_projection_and_merged(bank: Any) -> None:
    from peft import LoraConfig, get_peft_model

    ids = prompts()
    for first in ("graft", "adapter"):
        model = recipient()
        settings = LoraConfig(r=2, target_modules=["v_proj"], init_lora_weights=False)
        if first == "graft":
            wake(graft(model, bank, config(into="values")))
        model = get_peft_model(model, settings).eval()
        if first == "adapter":
            wake(graft(model, bank, config(into="values")))
        expected = model(ids).logits
        with model.disable_adapter():
            assert not torch.allclose(model(ids).logits, expected, atol=1e-4)
        merged = model.merge_and_unload()
        torch.testing.assert_close(merged(ids).logits, expected, atol=1e-5, rtol=1e-5)
        with disabled(merged):
            assert not torch.allclose(merged(ids).logits, expected, atol=1e-3)


def test_two_threads_do_not_mix(bank: Any) -> None:
    from concurrent.futures import ThreadPoolExecutor

    model = with_values(bank)
    texts = [prompts(1, seed=seed) for seed in range(8)]

    def logits(ids: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model(ids).logits

    expected = [logits(ids) for ids in texts]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(logits, texts * 3))
    assert all(torch.allclose(got, right, atol=1e-6) for got, right in zip(found, expected * 3, strict=True))


@pytest.mark.slow
def test_it_compiles_without_breaks(bank: Any) -> None:
    torch._dynamo.reset()
    model = with_values(bank).train()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for seed in range(3):
        ids = prompts(seed=seed)
        memory = MemoryBatch.look_up(bank, ids, from_batch({"input_ids": ids})).stage(bank)
        got, right = (run(input_ids=ids, memgraft=memory, use_cache=False).logits for run in (compiled, model))
        torch.testing.assert_close(got, right, atol=1e-5, rtol=1e-5)
    torch._dynamo.reset()


REFUSED = {"deepseek_v3": (0,), "gpt_neox": (0,), "gpt_bigcode": (0,), "persimmon": (1,), "jamba": (0,), "lfm2": (0,)}


@pytest.mark.parametrize("family", REFUSED)
def test_other_attention_is_refused_by_name(family: str, bank: Any) -> None:
    model = recipient(family, **MORE.get(family, {}))
    with pytest.raises(GraftError, match=r'into="values", block \d .*expected one projection called v_proj'):
        graft(model, bank, config(into="values", sites=REFUSED[family]))
    assert not [hook for module in model.modules() for hook in module._forward_hooks.values()]
    graft(model, bank, config())


def test_a_projection_that_is_not_called_is_no_silent_loss(bank: Any) -> None:
    model = with_values(bank)
    attention = model.model.layers[2].self_attn
    unused, attention.v_proj = attention.v_proj, torch.nn.Linear(32, 16, bias=False)
    assert any(isinstance(hook, ValueHook) for hook in unused._forward_hooks.values())
    with pytest.raises(GraftError, match=r"block 2 .* ran without its projection of values"):
        model(prompts())


def test_what_does_not_go_together_is_refused(bank: Any) -> None:
    with pytest.raises(ConfigError, match="one residual stream"):
        config(into="values", streams=2)
    with pytest.raises(ConfigError, match="into must be one of"):
        config(into="keys")
    model = with_values(bank)
    for layer in graft_layers(model)["default"].values():
        layer.kernel = True
    with pytest.raises(Exception, match="kernel=True: it writes into a target"):
        model(prompts())
    plain = wake(graft(recipient(), bank, config(gate="none")))
    for layer in graft_layers(plain)["default"].values():
        layer.kernel = True
    with pytest.raises(Exception, match="kernel=True: it has no gate"):
        plain(prompts())
    assert GraftConfig.from_json(config(into="values", gate="none").to_json()) == config(into="values", gate="none")
