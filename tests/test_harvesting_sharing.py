"""Each distinct prefix run once, against every key alone, over families of donors; and the packing itself."""

import dataclasses
import random
import re

import numpy as np
import pytest
import torch
import transformers

from memgraft.harvesting.donor import open_donor
from memgraft.harvesting.forward import donor_values
from memgraft.harvesting.packing import Ragged, shared_lengths, sorted_order, tree_batches
from memgraft.harvesting.sharing import find_sharing, relative_error
from tiny import tiny_donor

SMALL = {"vocab_size": 400, "num_hidden_layers": 3, "hidden_size": 32, "max_position_embeddings": 128}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
SHARING = {
    "llama": lambda: transformers.LlamaConfig(**SMALL, **HEADS, intermediate_size=64),
    "qwen3": lambda: transformers.Qwen3Config(**SMALL, **HEADS, intermediate_size=64),
    "gemma3_text": lambda: transformers.Gemma3TextConfig(**SMALL, **HEADS, intermediate_size=64, sliding_window=64),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=400, n_embd=32, n_layer=3, n_head=4, n_positions=128),
    "mixtral": lambda: transformers.MixtralConfig(
        **SMALL, **HEADS, intermediate_size=32, num_local_experts=4, num_experts_per_tok=2
    ),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **SMALL, **HEADS, intermediate_size=64, moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2
    ),
}
ALONE = {
    "mamba": (lambda: transformers.MambaConfig(vocab_size=400, num_hidden_layers=3, hidden_size=32), "recurrent"),
    "falcon_h1": (
        lambda: transformers.FalconH1Config(
            **SMALL,
            **HEADS,
            intermediate_size=64,
            mamba_d_ssm=64,
            mamba_n_heads=8,
            mamba_d_head=8,
            mamba_d_state=8,
            mamba_n_groups=1,
            mamba_chunk_size=16,
        ),
        "recurrent",
    ),
    "bloom": (lambda: transformers.BloomConfig(vocab_size=400, hidden_size=32, n_layer=3, n_head=4), "mask|differ"),
    "gemma3_text": (
        lambda: transformers.Gemma3TextConfig(**SMALL, **HEADS, intermediate_size=64, sliding_window=16),
        "sliding window of 16 is shorter than the longest key's 40 tokens",
    ),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return open_donor(tiny_donor(tmp_path_factory.mktemp("donor")), compute_dtype="float32")


def made(plain, name, config, *, attention=None, dtype=torch.float32):
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    model = model.to(dtype).eval().requires_grad_(False)
    compute = str(dtype).removeprefix("torch.")
    return dataclasses.replace(
        plain, model=model, num_blocks=3, value_dim=32, vocab_size=400, architecture=name, compute_dtype=compute
    )


def some_keys(number=40):
    """Keys of one donor token and of forty, prefixes of each other, twins, and many that branch early."""
    generator = random.Random(5)
    keys = [[generator.randrange(1, 9) for _ in range(generator.randint(1, 5))] for _ in range(number)]
    long = [generator.randrange(1, 400) for _ in range(40)]
    keys += [long, long[:39], long[:1], long, long[:20] + long[:20]]
    generator.shuffle(keys)
    return keys


@pytest.mark.parametrize("name", SHARING)
def test_shared_equals_alone(plain, name):
    donor, keys = made(plain, name, SHARING[name]()), some_keys()
    taps = (0, 1, 3)
    assert find_sharing(donor, taps, Ragged.of(keys), (7, 3)).shared
    alone = donor_values(donor, taps, keys, max_tokens=1)
    for max_tokens in (64, 2048):
        assert relative_error(donor_values(donor, taps, keys, max_tokens=max_tokens, shared=True), alone) <= 1e-5
        assert relative_error(donor_values(donor, taps, keys, max_tokens=max_tokens), alone) <= 1e-5


@pytest.mark.parametrize("name", [*SHARING, "mamba", "falcon_h1"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing(plain, name, side):
    """What transformers computes of a padded batch is what the harvest stores, whichever side a tokenizer pads."""
    config = SHARING[name]() if name in SHARING else ALONE[name][0]()
    donor, keys = made(plain, name, config), some_keys(12)
    expected = donor_values(donor, (1, 2), keys, max_tokens=1, shared=False)
    width = max(map(len, keys))
    tokens, mask = torch.zeros(len(keys), width, dtype=torch.long), torch.zeros(len(keys), width, dtype=torch.long)
    for row, key in enumerate(keys):
        places = slice(width - len(key), width) if side == "left" else slice(0, len(key))
        tokens[row, places], mask[row, places] = torch.tensor(key), 1
    positions = {} if name == "mamba" else {"position_ids": (mask.cumsum(1) - 1).clamp_min(0)}
    with torch.inference_mode():
        states = donor.model(tokens, attention_mask=mask, output_hidden_states=True, use_cache=False, **positions)
    last = torch.tensor([width - 1 if side == "left" else len(key) - 1 for key in keys])
    first = 1 if name == "mamba" else 0  # its list begins after the first block, others' with the embeddings
    found = torch.stack([states.hidden_states[tap - first][torch.arange(len(keys)), last] for tap in (1, 2)], dim=1)
    assert relative_error(found, expected) <= 2e-5
    if name in SHARING:
        assert relative_error(donor_values(donor, (1, 2), keys, max_tokens=512, shared=True), expected) <= 1e-5


@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
def test_eager_attention_reads_the_mask_too(plain, name):
    donor, keys = made(plain, name, SHARING[name](), attention="eager"), some_keys(40)
    alone = donor_values(donor, (2, 3), keys, max_tokens=1)
    assert relative_error(donor_values(donor, (2, 3), keys, max_tokens=512, shared=True), alone) <= 1e-5


def test_bfloat16_stays_within_its_rounding(plain):
    """Sharing moves a state no further than batching does."""
    exact, keys = made(plain, "llama", SHARING["llama"]()), some_keys()
    donor = made(plain, "llama", SHARING["llama"](), dtype=torch.bfloat16)
    assert find_sharing(donor, (3,), Ragged.of(keys)).shared
    expected = donor_values(exact, (3,), keys, max_tokens=1)
    alone = relative_error(donor_values(donor, (3,), keys, max_tokens=1), expected)
    shared = relative_error(donor_values(donor, (3,), keys, max_tokens=1024, shared=True), expected)
    assert 1e-4 < shared < 2 * alone < 0.05


@pytest.mark.parametrize("name", ALONE)
def test_donors_that_cannot_share_are_found_out(plain, name):
    config, why = ALONE[name]
    donor, keys = made(plain, name, config()), some_keys(30)
    sharing = find_sharing(donor, (1, 3), Ragged.of(keys))
    assert not sharing.shared
    assert re.search(why, sharing.reason), sharing.reason
    alone = donor_values(donor, (1, 3), keys, max_tokens=1)
    assert relative_error(donor_values(donor, (1, 3), keys, max_tokens=128), alone) <= 1e-4


def test_a_donor_that_ignores_positions_or_mask_is_measured(plain, monkeypatch):
    """Nothing in its configuration says so; its states do."""
    keys = Ragged.of(some_keys(30))
    for ignored in ("position_ids", "attention_mask"):
        donor = made(plain, "llama", SHARING["llama"]())
        forward = donor.model.model.forward

        def deaf(*args, forward=forward, ignored=ignored, **options):
            if options.get("attention_mask") is not None and options["attention_mask"].ndim == 4:
                options.pop(ignored)
            return forward(*args, **options)

        monkeypatch.setattr(donor.model.model, "forward", deaf)
        sharing = find_sharing(donor, (3,), keys)
        assert not sharing.shared
        assert sharing.error > 1e-3


def slow_prefixes(keys):
    return {tuple(key[:length]) for key in keys for length in range(1, len(key) + 1)}


@pytest.mark.parametrize("max_tokens", [1, 30, 100, 1024])
def test_each_prefix_is_one_node(max_tokens):
    keys = some_keys(300)
    ragged = Ragged.of(keys)
    order = sorted_order(ragged)
    ordered = ragged.take(order)
    assert [keys[place] for place in order] == sorted(keys)
    assert int((ordered.lengths - shared_lengths(ordered)).sum()) == len(slow_prefixes(keys))
    done = nodes = 0
    for batch in tree_batches(ordered, max_tokens):
        assert batch.tokens.size <= max(max_tokens, 40)
        nodes += batch.num_tokens
        for lane, place in zip(batch.lanes, batch.places, strict=True):
            seen = np.flatnonzero(batch.sees[lane, place])
            seen = seen[np.argsort(batch.positions[lane, seen])]
            assert batch.tokens[lane, seen].tolist() == sorted(keys)[done]
            assert batch.positions[lane, seen].tolist() == list(range(len(seen)))
            done += 1
    assert done == len(keys)
    if max_tokens == 1024:
        assert nodes < 1.1 * len(slow_prefixes(keys))


def test_padding_is_a_small_share():
    generator = random.Random(1)
    keys = Ragged.of([[generator.randrange(60) for _ in range(generator.randint(1, 4))] for _ in range(4000)])
    batches = list(tree_batches(keys.take(sorted_order(keys)), 1024))
    assert sum(batch.num_tokens for batch in batches) >= 0.95 * sum(batch.tokens.size for batch in batches)


def test_long_ties_are_sorted_and_heads_are_put_before():
    long = list(range(30))
    keys = [[*long[:20], 5], long, [*long[:20], 4], [3], long[:20]]
    ragged = Ragged.of(keys)
    assert [keys[place] for place in sorted_order(ragged)] == sorted(keys)
    headed = ragged.headed((9, 8))
    assert [headed.part(i, i + 1).tokens.tolist() for i in range(5)] == [[9, 8, *key] for key in keys]
