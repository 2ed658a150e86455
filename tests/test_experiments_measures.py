"""Bits per byte, moved tokens and FLOPs, each against a slow way of saying the same."""

import collections
import math

import numpy as np
import pytest
import torch

import memgraft
from experiment_cases import RECIPE, make_material, make_place
from memgraft.experiments import ARMS, TokenWindows, build_recipient, held_out_loss
from memgraft.experiments.evaluate import memory_facts
from memgraft.experiments.measures import LOSSES_NAME, bits_per_byte, bytes_per_token, moved
from memgraft.experiments.train import build_arm, training_flops
from memgraft.tokenizer import open_tokenizer


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("experiment"))


@pytest.fixture(scope="module")
def material(place):
    return make_material(place)


def test_memory_off_is_the_loss_of_calls_without_it(material):
    model = build_arm(ARMS["graft"], RECIPE, material, seed=1)
    evaluation = {"grafted": True, "batch_size": 2, "bf16": False}
    facts = memory_facts(model, material.held_out, [0, 3], [0], material.bank, **evaluation)
    losses = []
    for window in (0, 3):
        tokens = torch.from_numpy(material.held_out.tokens(window))
        with torch.no_grad():
            logits = model(tokens[None], memgraft=False).logits[0]
        losses.append(torch.nn.functional.cross_entropy(logits[:-1], tokens[1:]).item())
    assert facts["memory_off"]["overall"] == pytest.approx(np.mean(losses), abs=1e-5)
    on = held_out_loss(model, material.held_out, [0, 3], material.bank, **evaluation)
    assert abs(on.overall - facts["memory_off"]["overall"]) > 1e-4
    rows, _ = material.bank.index.lookup(
        material.held_out.tokens(0).astype(np.uint32)[None], segments=material.held_out.segments(0)[None]
    )
    assert facts["gates"]["default/site1/hit/positions"] == (rows >= 0).sum()
    assert 0 < facts["gates"]["default/site1/hit/gate_mean"] < 1
    assert facts["gates"]["default/site1/miss/injected_norm"] > 0


def test_bytes_are_those_of_the_texts(place):
    corpus = memgraft.Corpus.open(place / "held-out-tokens")
    texts = [path.read_text() for path in (place / "held-out").iterdir()]
    per_token = bytes_per_token(TokenWindows(corpus, RECIPE.seq_len), place / "tokenizer.json")
    assert per_token == pytest.approx(sum(len(text.encode()) for text in texts) / corpus.num_tokens)
    assert bits_per_byte(math.log(2) * per_token, per_token) == pytest.approx(1.0)
    assert bits_per_byte(1.0, None) is None


def test_moved_pairs_are_those_of_a_slow_sum(place, material, tmp_path):
    rng = np.random.default_rng(0)
    windows = material.train
    chosen = list(range(0, len(windows), 2))
    losses = rng.random((2, 2, len(chosen), RECIPE.seq_len - 1), dtype=np.float32)
    folders = []
    for seed in range(2):
        pair = [tmp_path / f"{arm}-{seed}" for arm in range(2)]
        for arm, folder in enumerate(pair):
            folder.mkdir()
            np.save(folder / LOSSES_NAME, losses[seed, arm])
        folders.append(tuple(pair))
    found = moved(folders, windows, chosen, material.bank, place / "tokenizer.json")
    codec = open_tokenizer(place / "tokenizer.json")
    places = collections.defaultdict(list)
    for number, window in enumerate(chosen):
        tokens = windows.tokens(window)
        rows, _ = material.bank.index.lookup(tokens.astype(np.uint32)[None], segments=windows.segments(window)[None])
        for position in range(RECIPE.seq_len - 1):
            if rows[0, position] >= 0:
                places[int(rows[0, position]), int(tokens[position + 1])].append(
                    losses[:, :, number, position].mean(axis=0)
                )
    change = {pair: sum(first - second for first, second in seen) for pair, seen in places.items() if len(seen) >= 2}
    assert len(change) > 3
    for part, sign in (("gained", 1), ("lost", -1)):
        expected = sorted(value * sign for value in change.values() if value * sign < 0)[:12]
        listed = [sign * entry["times"] * (entry["loss"] - entry["loss_without"]) for entry in found[part]]
        assert listed == pytest.approx(expected, abs=1e-5)
    (row, token) = min(change, key=change.get)
    part = material.bank.keys.arrays(row, row + 1)
    assert found["gained"][0]["key"] == codec.decode_inside([[int(value) for value in part.tokens]])[0]
    assert found["gained"][0]["next"] == codec.decode_inside([[token]])[0]
    assert moved([(tmp_path, tmp_path)], windows, chosen, material.bank, place / "tokenizer.json") is None


def test_training_flops_are_six_a_parameter_and_attention(material):
    model = build_recipient(RECIPE, vocab_size=320, eos_id=0, seed=3)
    width, blocks, length = RECIPE.width, RECIPE.num_blocks, RECIPE.seq_len
    weights = 320 * width + blocks * (4 * width**2 + 3 * width * RECIPE.ffn_width + 2 * width) + width
    # A position attends to half the window in the mean: a product with the keys, one with the values, thrice with
    # the backward.
    attention = blocks * 3 * 2 * (2 * (length // 2) * width)
    assert training_flops(model, 0, length) == 6 * weights + attention
    assert training_flops(build_arm(ARMS["graft"], RECIPE, material, 3), 0, length) > training_flops(model, 0, length)
