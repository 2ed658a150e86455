"""Attach, detach, switch off, copy; what is refused."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from grafted_models import FAMILIES, VOCAB, config, grafted, make_bank, prompts, recipient, wake
from memgraft.config import FallbackConfig, GraftConfig
from memgraft.errors import ArgumentError, ConfigError, GraftError
from memgraft.integrations.transformers import (
    detach,
    disabled,
    graft,
    graft_layers,
    mark_trainable,
    optimizer_groups,
    parameter_counts,
    print_trainable_parameters,
    save_graft,
)
from memgraft.nn.optim import RowwiseAdamW


@pytest.mark.parametrize("init", ["zero", "scalar"])
@pytest.mark.parametrize("family", FAMILIES)
def test_attaching_is_an_identity_and_learns(family: str, init: str, bank: Any) -> None:
    model = recipient(family)
    ids = prompts()
    before = model(ids).logits
    graft(model, bank, config(init=init))
    assert torch.equal(model(ids).logits, before)
    model(ids, labels=ids).loss.backward()
    for layer in graft_layers(model)["default"].values():
        learners = [layer.memory_value.weight, layer.fallback_value.weight] if init == "zero" else [layer.scale]
        assert all(parameter.grad.abs().max() > 0 for parameter in learners)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_identity_in_half_precision(dtype: torch.dtype, bank: Any) -> None:
    model = recipient("llama").to(dtype)
    ids = prompts()
    before = model(ids).logits
    graft(model, bank, config(init="zero"))
    assert {p.dtype for layer in graft_layers(model)["default"].values() for p in layer.parameters()} == {torch.float32}
    assert torch.equal(model(ids).logits, before)
    detach(model)
    graft(model, bank, config(init="zero", dtype="recipient"))
    assert {p.dtype for layer in graft_layers(model)["default"].values() for p in layer.parameters()} == {dtype}
    assert torch.equal(model(ids).logits, before)


def test_detach_leaves_no_trace(bank: Any) -> None:
    model = recipient()
    state, ids = copy.deepcopy(model.state_dict()), prompts()
    before = model(ids).logits
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    wake(graft(model, bank, config()))
    assert not torch.equal(model(ids).logits, before)
    assert "memgraft" in "".join(model.state_dict())
    detach(model)
    assert torch.equal(model(ids).logits, before)
    assert set(model.state_dict()) == set(state)
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    assert not any(module._forward_pre_hooks for module in model.modules())
    with pytest.raises(GraftError, match="no graft"):
        detach(model)


def test_recipient_keys_are_unchanged(bank: Any) -> None:
    model = recipient()
    before = set(model.state_dict())
    graft(model, bank, config())
    assert {key for key in model.state_dict() if ".memgraft." not in key} == before


def test_disabled_context_and_call(bank: Any) -> None:
    ids = prompts()
    before = recipient()(ids).logits
    model = grafted(bank)
    on = model(ids).logits
    assert not torch.equal(on, before)
    with disabled(model):
        assert torch.equal(model(ids).logits, before)
    assert torch.equal(model(ids, memgraft=False).logits, before)
    assert torch.equal(model(ids).logits, on)
    with pytest.raises(GraftError, match="no graft to switch off"), disabled(recipient()):
        pass


def test_generation_without_memory(bank: Any) -> None:
    model, ids, options = grafted(bank), prompts(1, 12), {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    on = model.generate(ids, **options)
    plain = recipient().generate(ids, **options)
    assert not torch.equal(on, plain)
    assert torch.equal(model.generate(ids, memgraft=False, **options), plain)
    assert torch.equal(model.generate(ids, memgraft=None, **options), on)
    for wrong in (True, 5, ids):
        with pytest.raises(GraftError, match=r"generate\(\) takes an open bank, .* or False for no memory, found"):
            model.generate(ids, memgraft=wrong, **options)


def test_disabled_does_not_reach_other_threads(bank: Any) -> None:
    from concurrent.futures import ThreadPoolExecutor

    model, ids = grafted(bank), prompts()
    on = model(ids).logits
    with ThreadPoolExecutor(1) as pool, disabled(model):
        assert torch.equal(pool.submit(lambda: model(ids).logits).result(), on)


def test_several_grafts(bank: Any, two_taps: Any, tmp_path: Any) -> None:
    ids = prompts()
    model = grafted(bank)
    one = model(ids).logits
    wake(graft(model, two_taps, config(sites=(0, 1), seed=3), name="second"))
    both = model(ids).logits
    assert not torch.equal(one, both)
    with pytest.raises(GraftError, match="a graft named 'second' already"):
        graft(model, two_taps, config(), name="second")
    with pytest.raises(
        GraftError, match=r"expected one graft, the model has \['default', 'second'\]: say which with name="
    ):
        save_graft(model, tmp_path)
    with pytest.raises(GraftError, match="False, which switches all grafts off"):
        model(ids, memgraft={"second": False})
    detach(model, "second")
    assert torch.equal(model(ids).logits, one)
    with pytest.raises(GraftError, match="identifier"):
        graft(model, bank, config(), name="a.b")


def test_taps_reach_their_sites(two_taps: Any) -> None:
    swapped = config(sites=(0, 2), taps=(7, 3), fallback=None)
    ids = prompts()
    in_order = grafted(two_taps, fallback=None)
    model = graft(recipient(), two_taps, swapped)
    wake(model)
    assert not torch.equal(model(ids).logits, in_order(ids).logits)
    explicit = grafted(two_taps, fallback=None, taps=(3, 7))
    assert torch.equal(explicit(ids).logits, in_order(ids).logits)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_stand_alone(copied: Any, bank: Any) -> None:
    model, ids = grafted(bank), prompts()
    logits = model(ids).logits
    generated = model.generate(ids, max_new_tokens=8, do_sample=False)
    twin = copied(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(twin(ids).logits, logits)
    assert torch.equal(twin.generate(ids, max_new_tokens=8, do_sample=False), generated)
    detach(model)
    assert not torch.equal(twin(ids).logits, twin(ids, memgraft=False).logits)


TINY = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
REFUSED = {
    "bloom": TINY,
    "falcon": TINY,
    "gpt_neo": {**TINY, "attention_types": [[["global", "local"], 1]]},
    "mpt": {"vocab_size": VOCAB, "d_model": 32, "n_layers": 2, "n_heads": 4},
    "mamba": TINY,
    "rwkv": {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2},
    "gemma3n_text": {**TINY, "head_dim": 8, "num_key_value_heads": 2, "intermediate_size": 48, "laurel_rank": 4}
    | {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCAB, "num_kv_shared_layers": 0}
    | {"activation_sparsity_pattern": None, "layer_types": ["sliding_attention", "full_attention"]},
}


@pytest.mark.parametrize("family", REFUSED)
def test_unsupported_families_say_what_works(family: str, bank: Any) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **REFUSED[family]))
    with pytest.raises(GraftError, match=r"tested families: .*llama.*qwen3"):
        graft(model, bank, config(sites=(0,)))
    assert "memgraft" not in "".join(model.state_dict())


def test_layers_with_another_hidden_state_raise(bank: Any) -> None:
    model = grafted(bank)
    model.model.layers[0].register_forward_pre_hook(lambda _, args: (args[0].transpose(0, 1), *args[1:]), prepend=True)
    with pytest.raises(GraftError, match=r"\(batch, tokens, \.\.\.\) \(2, 20\), found \(20, 2, 32\).*tested families"):
        model(prompts())


def test_a_block_that_runs_twice_raises_where_a_state_is_kept(bank: Any) -> None:
    model = grafted(bank)
    model.model.layers[1] = model.model.layers[0]  # as in models that share or loop over their layers
    with torch.no_grad():
        model(prompts(), use_cache=False)
    with pytest.raises(GraftError, match=r"block 0 ran more than once.*use_cache=False"):
        model.generate(prompts(), max_new_tokens=2)


def test_a_config_without_a_pad_token(bank: Any) -> None:
    # The config of this family has no pad_token_id at all.
    codegen = AutoConfig.for_model("codegen", vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, rotary_dim=8)
    model = AutoModelForCausalLM.from_config(codegen).eval()
    before = model(prompts()).logits
    assert torch.equal(graft(model, bank, config(sites=(0, 1), init="zero"))(prompts()).logits, before)


def test_one_sequence_without_a_batch_is_refused(bank: Any) -> None:
    with pytest.raises(
        ArgumentError, match=r"input_ids: expected \(batch, tokens\), found \(20,\); give .* input_ids\[None\]"
    ):
        grafted(bank)(prompts()[0])


def test_streams_must_be_the_recipients(bank: Any) -> None:
    with pytest.raises(ConfigError, match=r"1 residual stream\(s\), the config 2"):
        graft(recipient(), bank, config(streams=2))


def test_other_models_are_refused(bank: Any) -> None:
    t5 = AutoConfig.for_model(
        "t5", vocab_size=VOCAB, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    from transformers import AutoModelForSeq2SeqLM

    with pytest.raises(GraftError, match="encoder-decoder"):
        graft(AutoModelForSeq2SeqLM.from_config(t5), bank, config())
    with pytest.raises(GraftError, match="no config: expected a transformers model"):
        graft(torch.nn.Linear(2, 2), bank, config())


def test_what_is_no_model_or_config_is_refused(bank: Any, tmp_path: Any) -> None:
    with pytest.raises(ArgumentError, match=r"recipient: expected a model, got a str; AutoModelForCausalLM"):
        graft("recipient/", bank, config())  # type: ignore[type-var]
    with pytest.raises(GraftError, match=r"^no graft to detach: the model has none"):
        detach(recipient())
    with pytest.raises(ArgumentError, match="recipient: expected a model, got a Bank"):
        save_graft(bank, tmp_path)
    with pytest.raises(ConfigError, match="config: expected a GraftConfig, got a dict"):
        graft(recipient(), bank, {"sites": (1,)})  # type: ignore[arg-type]


def test_a_layer_that_loses_the_side_input_raises(bank: Any) -> None:
    model = grafted(bank)
    with pytest.raises(GraftError, match="without the memory's side input"):
        model.model.layers[0](torch.zeros(1, 3, 32))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"sites": (0, 3)}, r"must lie in 0\.\.2"),
        ({"taps": (2, 5)}, r"taps \[5\] are not in the bank, which was harvested at \(2,\)"),
        ({"fallback": FallbackConfig(table_size=31, num_heads=2, dim=8)}, "pass graft"),
    ],
)
def test_configs_that_do_not_fit(overrides: dict[str, Any], message: str, bank: Any) -> None:
    with pytest.raises(ConfigError, match=message):
        graft(recipient(), bank, config(**overrides))


def test_bank_that_does_not_fit(two_taps: Any, bank: Any) -> None:
    with pytest.raises(ConfigError, match="say which feeds which"):
        graft(recipient(), two_taps, config(sites=(0, 1, 2)))
    with pytest.raises(ConfigError, match="do not share a tokenizer"):
        graft(recipient(vocab_size=20), bank, config())


def test_controls(bank: Any, tmp_path: Any) -> None:
    ids = prompts()
    plain = recipient()(ids).logits
    outputs = {}
    for control in (None, "shuffled", "random", "constant", "trainable", "no_fallback", "no_memory", "fallback_only"):
        model = grafted(bank, control=control)
        outputs[control] = model(ids).logits
        again = grafted(bank, control=control)
        assert torch.equal(again(ids).logits, outputs[control]), control
        counts = parameter_counts(model)
        if control == "no_memory":
            assert torch.equal(outputs[control], plain)
            assert counts["projections"] == counts["fallback"] == 0
        else:
            assert not torch.equal(outputs[control], plain)
        if control in ("shuffled", "random", "constant"):
            other = grafted(bank, control=control, seed=1)
            assert not torch.equal(other(ids).logits, outputs[control])
    distinct = [output for control, output in outputs.items() if control != "no_memory"]
    for i, one in enumerate(distinct):
        assert all(not torch.equal(one, other) for other in distinct[i + 1 :])


def test_shuffled_rows_are_the_banks_own(bank: Any) -> None:
    from memgraft.integrations.transformers.runtime import runtimes_of

    model = grafted(bank, control="shuffled")
    rows = runtimes_of(model.model)["default"].controlled
    assert sorted(rows.permutation.tolist()) == list(range(bank.num_rows))
    assert (rows.permutation != range(bank.num_rows)).mean() > 0.9


def test_random_rows_keep_norms_and_moments(tmp_path: Any) -> None:
    import numpy as np

    from memgraft.integrations.transformers.controls import ControlledRows

    bank = make_bank(tmp_path / "bank", num=2000, value_dim=64)
    rows = np.arange(2000, dtype=np.int32)
    real, drawn = bank.floats(rows), ControlledRows(bank, "random", 5).floats(rows)
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=-1), np.linalg.norm(real, axis=-1), rtol=1e-5)
    np.testing.assert_allclose(drawn.mean(axis=0), real.mean(axis=0), atol=0.6)
    np.testing.assert_allclose(drawn.std(axis=0), real.std(axis=0), rtol=0.15)
    assert abs(np.corrcoef(drawn.ravel(), real.ravel())[0, 1]) < 0.02
    # A row does not depend on the batch it is asked in.
    np.testing.assert_array_equal(ControlledRows(bank, "random", 5).floats(rows[[7, 3]]), drawn[[7, 3]])


def test_the_bank_is_neither_parameter_nor_buffer(bank: Any) -> None:
    model = grafted(bank)
    sizes = {tuple(t.shape) for t in (*model.parameters(), *model.buffers(), *model.state_dict().values())}
    assert not any(bank.num_rows in shape for shape in sizes)
    before = bank.floats([0, 5]).copy()
    model.to(torch.bfloat16)
    assert (bank.floats([0, 5]) == before).all()


def test_trainable_parameters(bank: Any, capsys: Any) -> None:
    model = grafted(bank)
    mark_trainable(model)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if ".memgraft." in name}
    print_trainable_parameters(model)
    printed = capsys.readouterr().out
    counts = parameter_counts(model)
    assert f"{bank.num_rows} rows, {bank.bytes_per_row} bytes per hit" in printed
    assert f"{counts['fallback']:,} in fallback tables" in printed
    layers = graft_layers(model)["default"].values()
    assert counts["trainable"] == sum(p.numel() for layer in layers for p in layer.parameters())
    assert counts["fallback"] == sum(layer.fallback.table.weight.numel() for layer in layers)


@pytest.mark.parametrize("rowwise", [False, True])
def test_optimizer_groups(rowwise: bool, bank: Any) -> None:
    model = grafted(bank)
    groups = {group["name"]: group for group in optimizer_groups(model, lr=0.1, weight_decay=0.3, rowwise=rowwise)}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    grouped = {key: {names[id(p)] for p in group["params"]} for key, group in groups.items()}
    assert sum(map(len, grouped.values())) == len(names)
    assert {name.rsplit(".", 3)[-3:][0] for name in grouped["tables"]} == {"fallback"}
    assert (groups["tables"]["lr"], groups["tables"]["weight_decay"]) == (0.5, 0.0)
    assert (groups["decay"]["lr"], groups["decay"]["weight_decay"]) == (0.1, 0.3)
    assert groups["no_decay"]["weight_decay"] == 0.0
    assert all("norm" in name or "conv" in name for name in grouped["no_decay"])
    assert not any("norm" in name or "conv" in name for name in grouped["decay"])
    optimizer = (RowwiseAdamW if rowwise else torch.optim.AdamW)(list(groups.values()))
    ids = prompts()
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_graft_config_reads_like_the_readme() -> None:
    made = GraftConfig(sites=(1, 12), gate="plain", conv=True, fallback=FallbackConfig(), control=None)
    assert made.conv_reach == 9
