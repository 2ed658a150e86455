"""Generation in less common ways, and what cannot be exact: it raises."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch

from grafted_models import (
    CACHE,
    EOS,
    NEW,
    PAD,
    config,
    full_logits,
    grafted,
    prompts,
    run,
    wake,
    word_tokenizer,
)
from memgraft.errors import GraftError
from memgraft.integrations.transformers import detach, disabled, graft

TOLERANCE = {"atol": 1e-6, "rtol": 0}


def test_several_sequences_a_prompt(bank: Any) -> None:
    model = grafted(bank)
    torch.manual_seed(0)
    sequences, logits = run(model, prompts(), do_sample=True, num_return_sequences=3)
    assert len(sequences) == 6
    torch.testing.assert_close(logits, full_logits(model, sequences), **TOLERANCE)


def test_classifier_free_guidance(bank: Any) -> None:
    # A second cache of another length, filled by the same model in turn.
    model = grafted(bank)
    options = {"max_new_tokens": NEW, "do_sample": False, "guidance_scale": 1.5}
    with_cache = model.generate(prompts(), **options)
    assert torch.equal(with_cache, model.generate(prompts(), use_cache=False, **options))
    assert not torch.equal(with_cache, model.generate(prompts(), max_new_tokens=NEW, do_sample=False))


def test_early_exit_drafts(bank: Any) -> None:
    model = grafted(bank)
    ids = prompts(1)
    sequences, logits = run(model, ids, assistant_early_exit=2)
    torch.testing.assert_close(logits, full_logits(model, sequences), **TOLERANCE)
    assert torch.equal(sequences, run(model, ids)[0])


def test_pipeline(bank: Any) -> None:
    from transformers import pipeline

    model, tokenizer = grafted(bank), word_tokenizer()
    ids = [prompts(1, 20), prompts(1, 13, seed=9)]
    options = {"max_new_tokens": NEW, "do_sample": False, "suppress_tokens": [PAD, 1, EOS]}
    texts = [" ".join(tokenizer.convert_ids_to_tokens(row[0].tolist())) for row in ids]
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer)
    # Batched, so that the shorter prompt is padded on the left.
    answers = pipe(texts, batch_size=2, return_full_text=False, **options)
    for row, answer in zip(ids, answers, strict=True):
        alone = model.generate(row, **options)[0, row.shape[1] :]
        assert answer[0]["generated_text"].split() == tokenizer.convert_ids_to_tokens(alone.tolist())


def test_detached_and_grafted_again(bank: Any, two_taps: Any) -> None:
    model = grafted(bank)
    expected = run(model, prompts())
    detach(model)
    wake(graft(model, two_taps, config(seed=3)))
    assert not torch.equal(run(model, prompts())[1], expected[1])
    detach(model)
    wake(graft(model, bank, config()))
    again = run(model, prompts())
    assert torch.equal(again[0], expected[0])
    assert torch.equal(again[1], expected[1])


@pytest.mark.gpu
# A static cache compiles, and inductor's modules warn while they are imported.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["offloaded", "offloaded_static"])
def test_offloaded_caches(kind: str, bank: Any) -> None:
    model, ids = grafted(bank).cuda(), prompts().cuda()
    sequences, logits = run(model, ids, cache_implementation=kind)
    torch.testing.assert_close(logits, full_logits(model, sequences), atol=1e-5, rtol=0)


# ------------------------------------------------------------------ what cannot be exact raises


def test_cache_of_another_run_raises(bank: Any) -> None:
    model = grafted(bank)
    ids = prompts()
    with disabled(model), torch.no_grad():
        cache = getattr(model(ids[:, :10], use_cache=True), CACHE)
    with pytest.raises(GraftError, match="holds 10 positions, the graft 'default' saw none"):
        model(ids[:, 10:], **{CACHE: cache})
    with torch.no_grad():
        cache = getattr(model(ids[:, :10], use_cache=True), CACHE)
        with disabled(model):
            model(ids[:, 10:12], **{CACHE: cache})
    with pytest.raises(GraftError, match="holds 12 positions, the graft 'default' saw 10"):
        model(ids[:, 12:], **{CACHE: cache})


def test_embeddings_without_ids_raise(bank: Any) -> None:
    model = grafted(bank)
    embeddings = model.get_input_embeddings()(prompts())
    with pytest.raises(GraftError, match="pass input_ids"):
        model(inputs_embeds=embeddings)
    with pytest.raises(GraftError, match=r"generate\(inputs_embeds=\.\.\.\)"):
        model.generate(inputs_embeds=embeddings, max_new_tokens=2)
    with disabled(model):
        model.generate(inputs_embeds=embeddings, max_new_tokens=2)


def test_paged_calls_raise(bank: Any) -> None:
    model = grafted(bank)
    with pytest.raises(GraftError, match="continuous batching"):
        model(prompts(), block_table=torch.zeros(1))
    with pytest.raises(GraftError, match="continuous batching"):
        model(prompts(), read_index=[torch.zeros(1)])


def test_batch_that_continues_with_its_own_memory_raises(bank: Any) -> None:
    from memgraft.data.handle import MemoryBatch

    model = grafted(bank)
    ids = prompts()
    cache = getattr(model(ids[:, :10], use_cache=True), CACHE)
    memory = MemoryBatch.look_up(bank, ids[:, 10:], torch.zeros(2, 10, dtype=torch.int32))
    with pytest.raises(GraftError, match="continues a cache"):
        model(ids[:, 10:], **{CACHE: cache}, memgraft=memory)


@pytest.mark.parametrize("where", ["on", "disabled"])
def test_continuous_batching_raises(where: str, bank: Any) -> None:
    model = grafted(bank)
    switch = disabled(model) if where == "disabled" else contextlib.nullcontext()
    with switch, pytest.raises(GraftError, match="continuous batching"):
        model.generate(prompts(), max_new_tokens=2, cache_implementation="paged")
    for name in ("generate_batch", "init_continuous_batching"):
        if hasattr(type(model), name):
            with pytest.raises(GraftError, match="continuous batching"):
                getattr(model, name)([[5, 6, 7]])
    detach(model)
    assert not {"generate_batch", "init_continuous_batching"} & set(vars(model))
