"""Every way to generate gives the logits of one full forward without a cache."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch

from grafted_models import (
    CACHE,
    EOS,
    FAMILIES,
    NEW,
    PAD,
    config,
    full_logits,
    grafted,
    prompts,
    recipient,
    run,
    wake,
)
from memgraft.config import Gate
from memgraft.errors import GraftError
from memgraft.integrations.transformers import disabled, graft

TOLERANCE = {"atol": 1e-6, "rtol": 0}


# Llama is the plain case, Gemma 3 has a sliding window, DeepSeek-V3 another attention; the others run as slow tests.
QUICK_FAMILIES = {"llama", "gemma3_text", "deepseek_v3"}
# Families whose blocks have one projection for values; Gemma 3 has grouped heads and a sliding window.
INTO_VALUES = ("llama", "qwen3", "gemma3_text", "gpt2", "mixtral")
QUICK_INTO_VALUES = {"gemma3_text"}


@pytest.fixture(
    scope="module",
    params=[
        *(pytest.param((name, "residual"), id=name, marks=[] if name in QUICK_FAMILIES else pytest.mark.slow)
          for name in FAMILIES),
        *(pytest.param((name, "values"), id=f"{name}-values",
                       marks=[] if name in QUICK_INTO_VALUES else pytest.mark.slow)
          for name in INTO_VALUES),
    ],
)  # fmt: skip
def model(request: pytest.FixtureRequest, bank: Any) -> Any:
    family, into = request.param
    return grafted(bank, family, into=into)


def test_memory_matters(model: Any) -> None:
    ids = prompts()
    with disabled(model):
        without = model(ids).logits
    assert (model(ids).logits - without).abs().max() > 0.05


def test_greedy(model: Any) -> None:
    sequences, logits = run(model, prompts())
    torch.testing.assert_close(logits, full_logits(model, sequences), **TOLERANCE)


def test_manual_chunks(model: Any) -> None:
    ids = prompts()
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
        out = model(ids[:, :7], use_cache=True)
        parts, cache = [out.logits], getattr(out, CACHE)
        for start, stop in [(7, 8), (8, 9), (9, 14), (14, 20)]:
            out = model(ids[:, start:stop], **{CACHE: cache})
            parts.append(out.logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, **TOLERANCE)


def test_sampling(model: Any) -> None:
    torch.manual_seed(1)
    sequences, logits = run(model, prompts(), do_sample=True, temperature=1.5)
    torch.testing.assert_close(logits, full_logits(model, sequences), **TOLERANCE)


def test_beams(model: Any) -> None:
    ids = prompts()
    out = model.generate(
        ids, max_new_tokens=NEW, num_beams=4, num_return_sequences=4, output_scores=True, return_dict_in_generate=True
    )
    # The beams did cross, or reordering would go untested.
    assert (out.beam_indices.diff(dim=1) != 0).any()
    log_probs = full_logits(model, out.sequences).log_softmax(dim=-1)
    chosen = log_probs.gather(-1, out.sequences[:, -NEW:, None]).sum(dim=(1, 2)) / NEW
    torch.testing.assert_close(out.sequences_scores, chosen, atol=1e-5, rtol=0)
    without_cache = model.generate(ids, max_new_tokens=NEW, num_beams=4, num_return_sequences=4, use_cache=False)
    assert torch.equal(out.sequences, without_cache)


def test_static_cache(model: Any) -> None:
    sequences, logits = run(model, prompts(), cache_implementation="static")
    torch.testing.assert_close(logits, full_logits(model, sequences), **TOLERANCE)


def test_static_cache_with_left_padding(model: Any) -> None:
    ids = prompts()
    padded, mask = left_pad(ids, 5)
    expected, expected_logits = run(model, ids)
    sequences, logits = run(model, padded, attention_mask=mask, cache_implementation="static")
    assert torch.equal(sequences[:, 5:], expected)
    torch.testing.assert_close(logits, expected_logits, **TOLERANCE)


def test_prompt_lookup(model: Any) -> None:
    ids = prompts(1)
    # A prompt that repeats, so that drafts are both taken and rejected.
    ids = torch.cat([ids, ids[:, :12]], dim=1)
    sequences, logits = run(model, ids, prompt_lookup_num_tokens=6)
    torch.testing.assert_close(logits, full_logits(model, sequences), **TOLERANCE)
    assert torch.equal(sequences, run(model, ids)[0])


def test_assisted_by_another_grafted_model(model: Any, bank: Any) -> None:
    assistant = grafted(bank, "llama", model_options={"seed": 4})
    ids = prompts(1)
    sequences, logits = run(model, ids, assistant_model=assistant)
    torch.testing.assert_close(logits, full_logits(model, sequences), **TOLERANCE)
    assert torch.equal(sequences, run(model, ids)[0])


def test_assisted_by_itself_accepts_drafts(model: Any) -> None:
    ids = prompts(1)
    sequences, logits = run(model, ids, assistant_model=model)
    torch.testing.assert_close(logits, full_logits(model, sequences), **TOLERANCE)


@pytest.mark.parametrize("size", [1, 6, 19])
def test_chunked_prefill(model: Any, size: int) -> None:
    sequences, logits = run(model, prompts(), prefill_chunk_size=size)
    torch.testing.assert_close(logits, full_logits(model, sequences), **TOLERANCE)


@pytest.mark.parametrize("whole", [True, False])
def test_continuation(model: Any, whole: bool) -> None:
    ids = prompts()
    expected, expected_logits = run(model, ids)
    first = model.generate(ids, max_new_tokens=10, do_sample=False, return_dict_in_generate=True)
    rest = first.sequences if whole else first.sequences[:, getattr(first, CACHE).get_seq_length() :]
    # The mask is given, since a generated pad token would be taken for padding.
    mask = torch.ones_like(first.sequences)
    options = {CACHE: getattr(first, CACHE), "attention_mask": mask, "max_new_tokens": NEW - 10}
    sequences, logits = run(model, rest, **options)
    assert torch.equal(sequences[:, -(NEW - 10) :], expected[:, -(NEW - 10) :])
    torch.testing.assert_close(logits, expected_logits[:, 10:], **TOLERANCE)


def left_pad(ids: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    padded = torch.cat([torch.full((ids.shape[0], count), PAD), ids], dim=1)
    return padded, (torch.arange(padded.shape[1]) >= count).long().expand_as(padded).contiguous()


def test_left_padding_in_a_ragged_batch(model: Any) -> None:
    long, short = prompts(1, 20), prompts(1, 13, seed=9)
    padded, mask = left_pad(short, 7)
    together = run(model, torch.cat([long, padded]), attention_mask=torch.cat([torch.ones_like(long), mask]))
    for row, alone in enumerate([long, short]):
        sequences, logits = run(model, alone)
        assert torch.equal(together[0][row, -NEW:], sequences[0, -NEW:])
        torch.testing.assert_close(together[1][row], logits[0], **TOLERANCE)


def test_without_cache(model: Any) -> None:
    sequences, logits = run(model, prompts(), use_cache=False)
    torch.testing.assert_close(logits, full_logits(model, sequences), **TOLERANCE)


def test_disabled_generation_is_the_recipients_own(model: Any) -> None:
    plain = recipient(model.config.model_type)
    with disabled(model):
        got = run(model, prompts())
    expected = run(plain, prompts())
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])


# ------------------------------------------------------------------ one family is enough from here


def test_eos_in_the_middle_ends_the_look_back(bank: Any) -> None:
    model = grafted(bank)
    ids = prompts(1)
    ids[0, 8] = EOS
    changed = ids.clone()
    changed[0, :9] = torch.tensor([5, 6, 7, 8, 9, 10, 11, 12, EOS])
    injected = []
    for tokens in (ids, changed):
        with_memory = site_update(model, tokens)
        injected.append(with_memory[:, 9:])
    torch.testing.assert_close(*injected, **TOLERANCE)
    # The same holds when decoding step by step across it.
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
        cache, parts = None, []
        for t in range(ids.shape[1]):
            out = model(ids[:, t : t + 1], **{CACHE: cache}, use_cache=True)
            cache = getattr(out, CACHE)
            parts.append(out.logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, **TOLERANCE)


@torch.no_grad()
def site_update(model: Any, ids: torch.Tensor, **options: Any) -> torch.Tensor:
    """What the first site adds at block 0, where the hidden state is the embedding of the token itself."""
    hidden = []
    handle = model.model.layers[0].input_layernorm.register_forward_pre_hook(lambda _, args: hidden.append(args[0]))
    try:
        model(ids, use_cache=False, **options)
    finally:
        handle.remove()
    return hidden[0] - model.model.embed_tokens(ids)


def test_rollback_through_the_cache(bank: Any) -> None:
    model = grafted(bank)
    ids = prompts(1, 30)
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
        cache = getattr(model(ids[:, :20], use_cache=True), CACHE)
        model(torch.flip(ids[:, :9], dims=(1,)), **{CACHE: cache})
        cache.crop(-9)
        out = model(ids[:, 20:], **{CACHE: cache})
    torch.testing.assert_close(out.logits, whole[:, 20:], **TOLERANCE)


def test_rollback_further_than_the_window_raises_unless_recorded(bank: Any) -> None:
    model = grafted(bank)
    ids = prompts(1, 200)
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
        cache = getattr(model(ids[:, :180], use_cache=True), CACHE)
        with pytest.raises(GraftError, match="cannot crop 100 positions: the graft keeps 64"):
            cache.crop(-100)
        cache = getattr(model(ids[:, :5], use_cache=True), CACHE)
        cache.activate_past_recording()
        model(ids[:, 5:180], **{CACHE: cache})
        cache.crop(-100)
        out = model(ids[:, 80:], **{CACHE: cache})
    torch.testing.assert_close(out.logits, whole[:, 80:], **TOLERANCE)


def test_cache_batch_operations(bank: Any) -> None:
    model = grafted(bank)
    ids = prompts(2, 24)
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
        cache = getattr(model(ids[:, :15], use_cache=True), CACHE)
        cache.batch_repeat_interleave(3)
        cache.batch_select_indices(torch.tensor([5, 0]))
        out = model(ids[[1, 0], 15:], **{CACHE: cache})
        torch.testing.assert_close(out.logits, whole[[1, 0], 15:], **TOLERANCE)
        cache.reset()
        if cache.get_seq_length():
            return  # before transformers 5.18 a dynamic cache that is reset keeps its length, and the graft refuses it
        out = model(ids[:, :10], **{CACHE: cache})
    torch.testing.assert_close(out.logits, whole[:, :10], **TOLERANCE)


def test_cache_copies_and_pickles(bank: Any) -> None:
    import copy
    import pickle

    model = grafted(bank)
    ids = prompts(1, 24)
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
        cache = getattr(model(ids[:, :15], use_cache=True), CACHE)
        copies = [copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))]
        model(prompts(1, 3, seed=8), **{CACHE: cache})
        for twin in copies:
            out = model(ids[:, 15:], **{CACHE: twin})
            torch.testing.assert_close(out.logits, whole[:, 15:], **TOLERANCE)


def test_two_interleaved_conversations(bank: Any) -> None:
    model = grafted(bank)
    one, two = prompts(1, 20, seed=1), prompts(1, 20, seed=2)
    with torch.no_grad():
        expected = [model(ids, use_cache=False).logits for ids in (one, two)]
        caches: list[Any] = [None, None]
        parts: list[list[torch.Tensor]] = [[], []]
        for t in range(20):
            for which, ids in enumerate((one, two)):
                out = model(ids[:, t : t + 1], **{CACHE: caches[which]}, use_cache=True)
                caches[which] = getattr(out, CACHE)
                parts[which].append(out.logits)
    for which in range(2):
        torch.testing.assert_close(torch.cat(parts[which], dim=1), expected[which], **TOLERANCE)


@pytest.mark.parametrize(
    "overrides",
    [{"conv": False}, {"fallback": None}, {"control": "shuffled"}, *({"gate": gate} for gate in get_args(Gate))],
)
def test_variants_decode_exactly(bank: Any, overrides: dict[str, Any]) -> None:
    model = grafted(bank, **overrides)
    sequences, logits = run(model, prompts(), prefill_chunk_size=7)
    torch.testing.assert_close(logits, full_logits(model, sequences), **TOLERANCE)


def test_several_grafts_decode_exactly(bank: Any, two_taps: Any) -> None:
    model = grafted(bank)
    wake(graft(model, two_taps, config(sites=(0, 1), seed=3), name="second"))
    sequences, logits = run(model, prompts(), num_beams=1)
    torch.testing.assert_close(logits, full_logits(model, sequences), **TOLERANCE)
