"""The fourteen mistakes seen in the wild: each has a check, and a test that makes the mistake and sees the check fail.

``test_NN_...`` runs the check on the real thing; ``test_NN_is_noticed`` runs the same check with the mistake made,
which must not pass. The docstrings name the mistake that is made.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from grafted_models import CACHE, EOS, PAD, VOCAB, config, grafted, make_bank, prompts, recipient
from memgraft.bank import Bank
from memgraft.data import MemoryBatch
from memgraft.errors import ArgumentError, FingerprintError, FormatError, GraftError, TokenError
from memgraft.index import NgramIndex
from memgraft.integrations.transformers import attach as attach_module
from memgraft.integrations.transformers import (
    decode_state,
    disabled,
    graft,
    graft_layers,
    hooks,
    load_graft,
    record_telemetry,
    save_graft,
    saving,
    side_input,
)
from memgraft.integrations.transformers.runtime import GraftRuntime, runtimes_of
from memgraft.keyset import KeySet
from memgraft.nn.conv import SegmentConv
from memgraft.nn.fallback import HashFallback
from memgraft.nn.gate import rms_normalize
from memgraft.nn.graft_layer import GraftLayer
from memgraft.nn.hashing import prime_sizes
from oracle import longest_match

TOLERANCE = {"atol": 1e-6, "rtol": 0}


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Bank:
    return make_bank(tmp_path_factory.mktemp("bank") / "bank")


def noticed(check: Callable[[], None]) -> None:
    """The check must fail, and by one of its own comparisons."""
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check()


@torch.no_grad()
def update(model: Any, ids: torch.Tensor, **options: Any) -> torch.Tensor:
    """What site 0 adds to the embeddings, (B, T, D): no attention in between."""
    seen: list[torch.Tensor] = []
    handle = model.model.layers[0].input_layernorm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        model(ids, use_cache=False, **options)
    finally:
        handle.remove()
    added: torch.Tensor = seen[0] - model.model.embed_tokens(ids)
    return added


# ------------------------------------------------------------------ 1 the convolution reads the next token


def check_causal(bank: Bank) -> None:
    model = grafted(bank)
    ids = prompts(1, 18)
    with torch.no_grad():
        base = model(ids, use_cache=False).logits
        for t in range(17):
            changed = ids.clone()
            changed[:, t + 1 :] = prompts(1, 17 - t, seed=50 + t)
            logits = model(changed, use_cache=False).logits
            torch.testing.assert_close(logits[:, : t + 1], base[:, : t + 1], **TOLERANCE)


def test_01_changing_the_next_token_moves_nothing_before_it(bank: Bank) -> None:
    """Made: the convolution padded on both sides."""
    check_causal(bank)


def test_01_is_noticed(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    def both_sides(self: SegmentConv, inputs: torch.Tensor, segments: torch.Tensor, num_new: int) -> torch.Tensor:
        x = (rms_normalize(inputs) * self.norm()).flatten(2).transpose(1, 2)
        weight = self.weight.flatten(1).flip(0).t()[:, None]
        out = functional.conv1d(functional.pad(x, (4, 5)), weight, groups=x.shape[1], dilation=self.dilation)
        return functional.silu(out.transpose(1, 2).view(inputs.shape))[:, -num_new:]

    monkeypatch.setattr(SegmentConv, "forward", both_sides)
    noticed(lambda: check_causal(bank))


# ------------------------------------------------------------------ 2 off by one


def check_lags(folder: Path) -> None:
    bank = make_bank(folder / "one_key", keys=[(5, 6, 7)])
    model = grafted(bank, sites=(0,), fallback=None, conv=False)
    ids = torch.tensor([[9, 10, 11, 5, 6, 7, 12, 13]])
    hit = update(model, ids).abs().amax(dim=-1)[0]
    # The key ends at its last token, which is the current one and not the target.
    assert (hit > 0).tolist() == [t == 5 for t in range(8)]
    for lag in range(-2, 6):
        changed = ids.clone()
        changed[0, 5 - lag] = 20
        still = bool(update(model, changed)[0, 5].abs().max() > 0)
        assert still == (lag not in (0, 1, 2)), f"lag {lag}"
    from memgraft.config import FallbackConfig
    from memgraft.nn.compression import CompressedVocabulary

    settings = FallbackConfig(orders=(2, 3), num_heads=1, table_size=997, dim=1)
    fallback = HashFallback(
        settings,
        vocabulary=CompressedVocabulary.identity(VOCAB),
        layer=0,
        sizes=prime_sizes(1, settings.table_sizes, 1)[0],
        seed=0,
        pad_token_id=0,
    )
    segments = torch.zeros(1, 8, dtype=torch.int64)
    base = fallback.slots(ids, segments, 8)[0, 5]
    for lag in range(-2, 6):
        changed = ids.clone()
        changed[0, 5 - lag] = 20
        moved = (fallback.slots(changed, segments, 8)[0, 5] != base).tolist()
        assert moved == [lag in (0, 1), lag in (0, 1, 2)], f"lag {lag}"


def test_02_the_key_is_the_current_token_and_those_before_it(tmp_path: Path) -> None:
    """Made: rows (a), and hashes (b), of the position before or after."""
    check_lags(tmp_path)


@pytest.mark.parametrize("shift", [1, -1])
@pytest.mark.parametrize("where", ["rows", "hashes"])
def test_02_is_noticed(where: str, shift: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if where == "rows":
        lookup = side_input.look_up

        def off_by_one(bank: Any, tokens: Any, segments: Any, num_new: int, *rest: Any) -> MemoryBatch:
            memory = lookup(bank, tokens, segments, num_new, *rest)
            return MemoryBatch(
                rows=memory.rows.roll(shift, 1), orders=memory.orders.roll(shift, 1), segments=memory.segments
            )

        monkeypatch.setattr(side_input, "look_up", off_by_one)
    else:
        slots = HashFallback.slots
        monkeypatch.setattr(HashFallback, "slots", lambda self, x, s, n: slots(self, x.roll(shift, 1), s, n))
    noticed(lambda: check_lags(tmp_path))


# ------------------------------------------------------------------ 3 across documents


def check_documents(bank: Bank) -> None:
    model = grafted(bank, sites=(0,))
    parts = [prompts(1, n, seed=n) for n in (5, 1, 9)]
    ids = torch.cat(parts, dim=1)
    separate = torch.cat([update(model, part) for part in parts], dim=1)
    position_ids = torch.cat([torch.arange(part.shape[1]) for part in parts])[None]
    torch.testing.assert_close(update(model, ids, position_ids=position_ids), separate, **TOLERANCE)
    # An EOS ends its segment.
    ended = [torch.cat([part, torch.tensor([[EOS]])], dim=1) for part in parts]
    expected = torch.cat([update(model, part) for part in ended], dim=1)
    torch.testing.assert_close(update(model, torch.cat(ended, dim=1)), expected, **TOLERANCE)
    # Padding on the left is no context.
    padded = torch.cat([torch.full((1, 4), PAD), parts[0]], dim=1)
    mask = (torch.arange(9) >= 4).long()[None]
    got = update(model, padded, attention_mask=mask)
    torch.testing.assert_close(got[:, 4:], update(model, parts[0]), **TOLERANCE)
    assert got[:, :4].abs().max() == 0
    # The head of a chunk goes on where the one before it ended.
    with torch.no_grad():
        whole = model(parts[2], use_cache=False).logits
        cache = getattr(model(parts[2][:, :4], use_cache=True), CACHE)
        rest = model(parts[2][:, 4:], **{CACHE: cache}).logits
    torch.testing.assert_close(rest, whole[:, 4:], **TOLERANCE)


def test_03_nothing_crosses_documents_eos_padding_or_chunk_heads(bank: Bank) -> None:
    """Made: one segment for all positions; segments without EOS."""
    check_documents(bank)


@pytest.mark.parametrize("mistake", ["one_segment", "no_eos"])
def test_03_is_noticed(mistake: str, bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    running = side_input.running_segments
    if mistake == "one_segment":
        monkeypatch.setattr(side_input, "running_segments", lambda tokens, *_: torch.zeros_like(tokens))
    else:
        monkeypatch.setattr(side_input, "running_segments", lambda tokens, s, eos, *h: running(tokens, s, (), *h))
    noticed(lambda: check_documents(bank))


# ------------------------------------------------------------------ 4 row 0 is a key


def check_row_zero(folder: Path) -> None:
    bank = make_bank(folder / "bank", keys=[(5,), (6,)])
    assert bank.keys.key(0) == (5,)
    model = grafted(bank, sites=(0,), fallback=None, conv=False)
    added = update(model, torch.tensor([[5, 9, 6, 9, 5]])).abs().amax(dim=-1)[0]
    assert (added > 0).tolist() == [True, False, True, False, True]
    rows, orders = bank.index.lookup(np.array([5, 9, 6]))
    assert rows.tolist() == [0, -1, 1]
    assert orders.tolist() == [1, 0, 1]


def test_04_row_zero_is_a_key_and_a_miss_is_not(tmp_path: Path) -> None:
    """Made: misses sent to row 0."""
    check_row_zero(tmp_path)


def test_04_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = GraftLayer.forward
    monkeypatch.setattr(
        GraftLayer,
        "forward",
        lambda self, h, values, inverse, *args, **kw: forward(self, h, values, inverse.clamp_min(0), *args, **kw),
    )
    noticed(lambda: check_row_zero(tmp_path))


# ------------------------------------------------------------------ 5 off is off


def check_off(bank: Bank) -> None:
    ids = prompts()
    plain = recipient()(ids).logits
    model = grafted(bank)
    with disabled(model):
        assert torch.equal(model(ids).logits, plain)
    assert torch.equal(model(ids, memgraft=False).logits, plain)


def test_05_memory_off_is_not_the_fallback(bank: Bank) -> None:
    """Made: off implemented as a batch of misses, which then take the fallback."""
    check_off(bank)


def test_05_is_noticed(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    lookup = side_input.look_up

    def all_misses(bank: Any, tokens: Any, segments: Any, num_new: int, *rest: Any) -> MemoryBatch:
        memory = lookup(bank, tokens, segments, num_new, *rest)
        return MemoryBatch(rows=torch.full_like(memory.rows, -1), orders=memory.orders * 0, segments=memory.segments)

    monkeypatch.setattr(side_input, "look_up", all_misses)
    monkeypatch.setattr(hooks, "is_off", lambda decoder, given: False)
    prepare = hooks.prepare
    monkeypatch.setattr(
        hooks, "prepare", lambda *args, given, **kw: prepare(*args, given=None if given is False else given, **kw)
    )
    noticed(lambda: check_off(bank))


# ------------------------------------------------------------------ 6 a collision is no hit


def check_exact(lookup: Callable[[NgramIndex, np.ndarray], tuple[np.ndarray, np.ndarray]]) -> None:
    rng = np.random.default_rng(0)
    keys = sorted({tuple(rng.integers(0, 12, size=rng.integers(2, 5)).tolist()) for _ in range(3000)})
    index = NgramIndex.build(KeySet.from_keys(keys, vocab_size=12))
    tokens = rng.integers(0, 12, size=20000)
    rows, orders = lookup(index, tokens)
    expected_rows, expected_orders = longest_match({index.key(row): row for row in range(len(keys))}, tokens.tolist())
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_array_equal(orders, expected_orders)


def test_06_a_hash_collision_is_not_a_hit() -> None:
    """Made: keys told apart by a 16-bit hash alone."""
    check_exact(lambda index, tokens: index.lookup(tokens))


def test_06_is_noticed() -> None:
    def hashed(index: NgramIndex, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        table = {hash(index.key(row)) & 0xFFFF: row for row in range(len(index))}
        rows, orders = np.full(len(tokens), -1, np.int32), np.zeros(len(tokens), np.uint8)
        for t in range(len(tokens)):
            for order in range(min(4, t + 1), 1, -1):
                row = table.get(hash(tuple(tokens[t + 1 - order : t + 1].tolist())) & 0xFFFF)
                if row is not None:
                    rows[t], orders[t] = row, order
                    break
        return rows, orders

    noticed(lambda: check_exact(hashed))


# ------------------------------------------------------------------ 7 decoding


def check_decoding(bank: Bank) -> None:
    model = grafted(bank)
    ids = prompts(2, 14)
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
        for cuts in ([0, 14], [0, 5, 9, 14], list(range(15))):
            cache, parts = None, []
            for start, stop in itertools.pairwise(cuts):
                out = model(ids[:, start:stop], **{CACHE: cache}, use_cache=True)
                cache = getattr(out, CACHE)
                parts.append(out.logits)
            torch.testing.assert_close(torch.cat(parts, dim=1), whole, **TOLERANCE)
    options = {"max_new_tokens": 16, "num_beams": 4, "num_return_sequences": 4, "return_dict_in_generate": True}
    beams = model.generate(ids, output_scores=True, **options)
    assert (beams.beam_indices.diff(dim=1) != 0).any()
    with torch.no_grad():
        log_probs = model(beams.sequences, use_cache=False).logits[:, -17:-1].log_softmax(dim=-1)
    scores = log_probs.gather(-1, beams.sequences[:, -16:, None]).sum(dim=(1, 2)) / 16
    torch.testing.assert_close(beams.sequences_scores, scores, atol=1e-5, rtol=0)
    padded = torch.cat([torch.full((2, 6), PAD), ids], dim=1)
    mask = (torch.arange(20) >= 6).long().expand(2, 20)
    settings = {"max_new_tokens": 8, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    out = model.generate(padded, attention_mask=mask, **settings)
    alone = model.generate(ids, use_cache=False, **settings)
    torch.testing.assert_close(torch.stack(out.logits), torch.stack(alone.logits), **TOLERANCE)


def test_07_full_equals_chunked_equals_stepwise_equals_beams(bank: Bank) -> None:
    """Made: history dropped; conv state dropped; a chunk taken for a new prompt; beams not reordered; padding read."""
    check_decoding(bank)


@pytest.mark.parametrize("mistake", ["no_history", "no_conv_state", "new_prompt", "beams", "padding"])
def test_07_is_noticed(mistake: str, bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    if mistake == "no_history":
        real = side_input.look_up
        monkeypatch.setattr(
            side_input,
            "look_up",
            lambda r, tokens, segments, n, *rest: real(r, tokens[:, -n:], segments[:, -n:], n, *rest),
        )
    elif mistake == "no_conv_state":
        extend = decode_state.DecodeState.extend

        def forget(self: Any, window: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
            kept = extend(self, window, new)
            return kept * 0 if new.is_floating_point() else kept

        monkeypatch.setattr(decode_state.DecodeState, "extend", forget)
    elif mistake == "new_prompt":
        monkeypatch.setattr(
            side_input,
            "state_for",
            lambda runtime, cache, ids: decode_state.DecodeState.empty(ids.shape[0], runtime.reach, ids.device),
        )
    elif mistake == "beams":
        monkeypatch.setattr(decode_state.GraftedCache, "map_windows", lambda self, function: None)
    else:
        real_raw = side_input.raw_segments
        monkeypatch.setattr(side_input, "raw_segments", lambda ids, mask, *rest: real_raw(ids, None, *rest))
    noticed(lambda: check_decoding(bank))


# ------------------------------------------------------------------ 8 state travels with the call


def check_calls_do_not_mix(bank: Bank) -> None:
    model = grafted(bank)
    one, two = prompts(1, 12, seed=1), prompts(1, 12, seed=2)
    with torch.no_grad():
        expected = [model(ids, use_cache=False).logits for ids in (one, two)]
    # Both calls have passed the decoder's hook before either reaches a layer.
    barrier = threading.Barrier(2, timeout=30)
    handle = model.model.embed_tokens.register_forward_hook(lambda *_: (barrier.wait(), None)[1])

    def call(ids: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            logits: torch.Tensor = model(ids, use_cache=False).logits
        return logits

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(call, (one, two)))
    handle.remove()
    for got, wanted in zip(results, expected, strict=True):
        torch.testing.assert_close(got, wanted, **TOLERANCE)
    assert not any(isinstance(value, torch.Tensor) for value in vars(hooks).values())


def test_08_two_calls_at_once_do_not_mix(bank: Bank) -> None:
    """Made: the side input kept in a module-global between the decoder's hook and the layers'."""
    check_calls_do_not_mix(bank)


def test_08_is_noticed(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    latest: list[Any] = []
    decoder_hook, layer_hook = hooks.DecoderHook.__call__, hooks.LayerHook.__call__

    def remember(self: Any, module: Any, args: Any, kwargs: Any) -> Any:
        args, kwargs = decoder_hook(self, module, args, kwargs)
        latest[:] = [kwargs[hooks.KWARG]]
        return args, kwargs

    def recall(self: Any, module: Any, args: Any, kwargs: Any) -> Any:
        return layer_hook(self, module, args, {**kwargs, hooks.KWARG: latest[0]})

    monkeypatch.setattr(hooks.DecoderHook, "__call__", remember)
    monkeypatch.setattr(hooks.LayerHook, "__call__", recall)
    noticed(lambda: check_calls_do_not_mix(bank))


# ------------------------------------------------------------------ 9 the bank is not the model's


def check_bank_apart(model: Any, bank: Bank) -> None:
    tensors = [*model.parameters(), *model.buffers(), *model.state_dict().values()]
    assert not any(bank.num_rows in tensor.shape for tensor in tensors)
    optimizer = torch.optim.AdamW(model.parameters())
    assert not any(bank.num_rows in p.shape for group in optimizer.param_groups for p in group["params"])
    before = bank.floats([0, 1]).copy()
    model.to(torch.float64)
    assert (bank.floats([0, 1]) == before).all()


def test_09_the_bank_is_neither_parameter_nor_buffer(bank: Bank) -> None:
    """Made: the rows registered as a buffer, and as a frozen parameter."""
    check_bank_apart(grafted(bank), bank)


@pytest.mark.parametrize("mistake", ["buffer", "parameter"])
def test_09_is_noticed(mistake: str, bank: Bank) -> None:
    model = grafted(bank)
    rows = torch.from_numpy(bank.floats(np.arange(bank.num_rows, dtype=np.int32)))
    if mistake == "buffer":
        model.register_buffer("rows", rows, persistent=False)
    else:
        model.register_parameter("rows", torch.nn.Parameter(rows, requires_grad=False))
    noticed(lambda: check_bank_apart(model, bank))


# ------------------------------------------------------------------ 10 the donor's last real token


def check_last_real_token(folder: Path) -> None:
    from memgraft.harvesting import forward
    from memgraft.harvesting.donor import open_donor
    from tiny import tiny_donor

    donor = open_donor(tiny_donor(folder / "donor"))
    keys = [[5, 9, 11], [7], [301, 4, 8, 19, 2, 33], [5, 9]]
    together = forward.donor_values(donor, (2,), keys, max_tokens=1000)
    for position, key in enumerate(keys):
        with torch.no_grad():
            alone = donor.model(torch.tensor([key]), output_hidden_states=True).hidden_states[2][0, -1]
        torch.testing.assert_close(together[position, 0], alone, atol=1e-5, rtol=1e-5)


def test_10_a_batch_of_keys_gives_the_states_of_single_keys(tmp_path: Path) -> None:
    """Made: every key read at the batch's last column."""
    check_last_real_token(tmp_path)


def test_10_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from memgraft.harvesting import forward

    run = forward.run_donor
    monkeypatch.setattr(
        forward,
        "run_donor",
        lambda donor, taps, tokens, lengths: run(donor, taps, tokens, torch.full_like(lengths, tokens.shape[1])),
    )
    noticed(lambda: check_last_real_token(tmp_path))


# ------------------------------------------------------------------ 11 what does not belong together


def word_tokenizer(words: list[str], *, bos: bool = False) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{words[1]} $A", special_tokens=[(words[1], 1)]
        )
    return tokenizer


def check_refusals(bank: Bank, folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    from memgraft.harvesting.text import open_tokenizer

    words = ["<unk>", "<s>", *"abcdefghijklmnopqrstuvwxyz"]
    tokenizer = word_tokenizer(words)
    named = make_bank(folder / "named", tokenizer={"fingerprint": open_tokenizer(tokenizer).fingerprint})
    graft(recipient(), named, config(), tokenizer=tokenizer)
    with pytest.raises(FingerprintError):
        graft(recipient(), named, config(), tokenizer=word_tokenizer(words[::-1]))
    # A tokenizer that adds a BOS of its own adds none here.
    with_bos = word_tokenizer(words, bos=True)
    assert with_bos.encode("a b").ids == [1, 2, 3]
    assert open_tokenizer(with_bos).encode(["a b"]) == [[2, 3]]
    saved = save_graft(grafted(bank), folder / "graft")
    with pytest.raises(FingerprintError):
        load_graft(recipient(), saved, bank=named)
    weights = load_file(saved / "graft.safetensors")
    del weights["sites.0.memory_key.weight"]
    save_file(weights, saved / "graft.safetensors")
    with pytest.raises(GraftError):
        load_graft(recipient(), saved, bank=bank)


def test_11_other_tokenizers_banks_and_weights_are_refused(bank: Bank, tmp_path: Path) -> None:
    """Made: each of the three checks left out; a BOS added by the tokenizer's template."""
    check_refusals(bank, tmp_path)


@pytest.mark.parametrize("mistake", ["tokenizer", "bos", "bank", "weights"])
def test_11_is_noticed(mistake: str, bank: Bank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if mistake == "tokenizer":
        monkeypatch.setattr(attach_module, "check_tokenizer", lambda bank, tokenizer: None)
    elif mistake == "bos":
        from memgraft.harvesting.text import FastCodec

        def encode(self: Any, texts: Any) -> list[list[int]]:
            return [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]

        monkeypatch.setattr(FastCodec, "encode", encode)
    elif mistake == "bank":
        monkeypatch.setattr(saving, "named_bank", lambda folder, manifest, bank: bank)
    else:

        def lenient(recipient: Any, name: str, weights: Any, folder: Path) -> None:
            for key, tensor in saving.own_state(recipient, name).items():
                if key in weights:
                    tensor.data.copy_(weights[key])

        monkeypatch.setattr(saving, "load_weights", lenient)
    noticed(lambda: check_refusals(bank, tmp_path))


# ------------------------------------------------------------------ 12 precision, and eyes on the gate


def check_precision_and_eyes(bank: Bank) -> None:
    model = grafted(bank, sites=(0,), dtype="recipient").to(torch.bfloat16)
    layer: GraftLayer = graft_layers(model)["default"][0]
    ids = prompts(2, 30)
    seen: dict[str, torch.Tensor] = {}
    hidden, values = torch.randn(2, 5, 32).bfloat16(), torch.randn(3, 24).bfloat16()
    inverse, segments = torch.tensor([[0, 1, -1, 2, 0]] * 2), torch.zeros(2, 5, dtype=torch.int64)
    written, _ = layer(
        hidden,
        values,
        inverse,
        segments,
        ids[:, :5],
        observer=lambda h, alpha, added, out: seen.update(alpha=alpha, added=added),
    )
    assert seen["alpha"].dtype == torch.float32
    assert seen["added"].dtype == torch.float32
    assert torch.equal(written, (hidden.float() + seen["added"].squeeze(2)).bfloat16())
    # A gate stuck at 1 on hits, and an update too small for bf16, must both show in the figures, hits and misses apart.
    with torch.no_grad():
        layer.memory_key.weight.zero_()
        layer.memory_value.weight.mul_(1e-6)
        layer.fallback_value.weight.zero_()
        layer.conv.weight.zero_()
        with record_telemetry(model) as telemetry:
            model(ids, use_cache=False)
    figures = telemetry.summary()
    assert figures["default/site0/hit/gate_mean"] == pytest.approx(0.5, abs=1e-3)
    assert figures["default/site0/hit/gate_p10"] == pytest.approx(0.5, abs=1e-3)
    assert abs(figures["default/site0/miss/gate_p90"] - 0.5) > 1e-2
    assert figures["default/site0/hit/swallowed"] > 0.9
    assert 0 < figures["default/site0/hit/injected_norm"] < 1e-2
    assert figures["default/site0/miss/injected_norm"] == 0


def test_12_gate_and_sum_are_float32_and_telemetry_sees_what_bf16_swallows(bank: Bank) -> None:
    """Made: gate and sum in the model's bf16; telemetry that lumps hits and misses together."""
    check_precision_and_eyes(bank)


@pytest.mark.parametrize("mistake", ["bf16", "lumped"])
def test_12_is_noticed(mistake: str, bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    if mistake == "bf16":
        from memgraft.nn import mix

        real = mix.gate
        monkeypatch.setattr(mix, "gate", lambda k, q, s, kind: real(k, q, s, kind).bfloat16())
    else:
        from memgraft.integrations.transformers.telemetry import SiteStatistics

        add = SiteStatistics.add
        monkeypatch.setattr(SiteStatistics, "add", lambda self, orders, *rest: add(self, orders * 0 + 1, *rest))

    def check() -> None:
        try:
            check_precision_and_eyes(bank)
        except KeyError as error:
            raise AssertionError(f"figure missing: {error}") from error

    noticed(check)


# ------------------------------------------------------------------ 13 what the bank was mined from


def check_origin(folder: Path) -> None:
    fields = {"fingerprint": "a" * 64, "split": "train", "path": "train.bin"}
    keys = KeySet.from_keys([(5, 6), (7,)], vocab_size=VOCAB, metadata=fields)
    values = np.ones((2, 1, 4), dtype=np.float32)
    one = Bank.create(folder / "one", keys=keys, values=values, taps=(1,))
    assert Bank.open(folder / "one").manifest.corpus == fields
    other = Bank.create(folder / "two", keys=keys, values=values, taps=(1,), corpus={**fields, "split": "test"})
    # The origin is part of what a graft names its bank by.
    assert one.fingerprint != other.fingerprint


def test_13_the_bank_names_corpus_and_split(tmp_path: Path) -> None:
    """Made: a manifest without the corpus's facts."""
    check_origin(tmp_path)


def test_13_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from memgraft.bank.rows import RowWriter

    seal = RowWriter.seal
    monkeypatch.setattr(RowWriter, "seal", lambda self, *, corpus=None, **kw: seal(self, corpus={}, **kw))
    noticed(lambda: check_origin(tmp_path))


# ------------------------------------------------------------------ 14 nothing is read beside its place


def check_bounds(bank: Bank, folder: Path) -> None:
    model = grafted(bank)
    for token in (VOCAB, 10**6, -5):
        ids = prompts(1, 6)
        ids[0, 3] = token
        with pytest.raises(TokenError):
            model(ids)
        with pytest.raises((TokenError, ArgumentError)):
            bank.index.lookup(ids.numpy())
    out = np.full((1, 1, bank.value_dim), 7, dtype=np.float32)
    for row in (bank.num_rows, 2**31 - 1, -2):
        with pytest.raises(ArgumentError):
            bank.stage(rows=np.array([row], dtype=np.int32), out=out)
        with pytest.raises(ArgumentError):
            bank.values(np.array([row], dtype=np.int64))
    assert (out == 7).all()
    cut = make_bank(folder / "cut")
    names = sorted(path.name for path in cut.path.iterdir() if path.suffix in (".safetensors", ".mgi", ".mgk"))
    assert len(names) == 3
    for name in names:
        content = (cut.path / name).read_bytes()
        (cut.path / name).write_bytes(content[:-8])
        with pytest.raises(FormatError):
            Bank.open(cut.path)
        (cut.path / name).write_bytes(content)
    manifest = json.loads((cut.path / "bank.json").read_text())
    manifest["value_dim"] = 23
    (cut.path / "bank.json").write_text(json.dumps(manifest))
    with pytest.raises((FormatError, FingerprintError)):
        Bank.open(cut.path)


def test_14_ids_out_of_range_truncated_files_and_wrong_widths_are_errors(bank: Bank, tmp_path: Path) -> None:
    """Made: tokens and rows clamped into range; files opened without a look at their length."""
    check_bounds(bank, tmp_path)


@pytest.mark.parametrize("mistake", ["tokens", "rows", "files"])
def test_14_is_noticed(mistake: str, bank: Bank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if mistake == "tokens":
        real = side_input.prepare
        clamp = lambda runtimes, ids, **kw: real(runtimes, ids.clamp(0, VOCAB - 1), **kw)  # noqa: E731
        monkeypatch.setattr(hooks, "prepare", clamp)
        embedding = functional.embedding
        monkeypatch.setattr(
            functional, "embedding", lambda x, w, *a, **kw: embedding(x.clamp(0, len(w) - 1), w, *a, **kw)
        )
    elif mistake == "rows":
        stage = Bank.stage
        monkeypatch.setattr(
            Bank, "stage", lambda self, *a, rows, **kw: stage(self, *a, rows=rows.clip(-1, self.num_rows - 1), **kw)
        )
    else:
        monkeypatch.setattr(Bank, "open", classmethod(lambda cls, path, **kw: bank))
    noticed(lambda: check_bounds(bank, tmp_path))


def test_every_mistake_has_its_pair() -> None:
    names = [name for name in globals() if name.startswith("test_") and name[5:7].isdigit()]
    for number in range(1, 15):
        own = [name for name in names if name.startswith(f"test_{number:02d}_")]
        assert f"test_{number:02d}_is_noticed" in own
        assert len(own) == 2
    assert runtimes_of(torch.nn.Linear(1, 1)) == {}
    assert GraftRuntime.__deepcopy__ is not None
