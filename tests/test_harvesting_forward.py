"""The truncated donor run against the slow way: one key at a time through the whole model."""

import dataclasses

import huggingface_hub
import numpy as np
import pytest
import torch

from memgraft.errors import DonorError
from memgraft.harvesting.asked import refuse_donor
from memgraft.harvesting.donor import donor_folder, open_donor
from memgraft.harvesting.forward import batches_by_length, check_taps, donor_blocks, donor_values
from tiny import tiny_donor

KEYS = [[5, 9, 11], [7], [301, 4, 8, 19, 2, 33], [5, 9], [12, 12, 12], [5, 9, 11, 1]]


@pytest.fixture(scope="module")
def donor(tmp_path_factory):
    return open_donor(tiny_donor(tmp_path_factory.mktemp("donor")))


def slow_values(donor, taps, key):
    """transformers' own hidden states, unbatched; only the last one passes the final norm, so it is never asked for."""
    with torch.no_grad():
        output = donor.model(torch.tensor([key]), output_hidden_states=True)
    return torch.stack([output.hidden_states[tap][0, -1] for tap in taps])


def test_batched_equals_single_equals_transformers(donor):
    taps = (0, 1, 2)
    expected = torch.stack([slow_values(donor, taps, key) for key in KEYS])
    for max_tokens in (1, 7, 12, 1000):
        values = donor_values(donor, taps, KEYS, max_tokens=max_tokens)
        torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-5)


def family(name):
    """A tiny model of an architecture whose blocks, embeddings or positions differ from Llama's."""
    import transformers

    small = {"vocab_size": 400, "num_hidden_layers": 3, "hidden_size": 32}
    config = {
        "opt": lambda: transformers.OPTConfig(
            **small, ffn_dim=64, num_attention_heads=4, word_embed_proj_dim=16, max_position_embeddings=64
        ),
        "gpt2": lambda: transformers.GPT2Config(vocab_size=400, n_embd=32, n_layer=3, n_head=4, n_positions=64),
        "gpt_neox": lambda: transformers.GPTNeoXConfig(**small, intermediate_size=64, num_attention_heads=4),
        "gemma3_text": lambda: transformers.Gemma3TextConfig(
            **small, intermediate_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=8, sliding_window=4
        ),
        "bloom": lambda: transformers.BloomConfig(vocab_size=400, hidden_size=32, n_layer=3, n_head=4),
        "mamba": lambda: transformers.MambaConfig(**small, state_size=4),
    }[name]()
    torch.manual_seed(1)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("name", ["opt", "gpt2", "gpt_neox", "gemma3_text", "bloom", "mamba"])
def test_other_families(name, donor):
    model = family(name)
    other = dataclasses.replace(donor, model=model, num_blocks=3, value_dim=32, architecture=name)
    values = donor_values(other, (0, 1, 2, 3), KEYS, max_tokens=12)
    # Mamba's list of states starts after its first block; the others' ends with the normed one, which no tap is.
    shift = 1 if name == "mamba" else 0
    taps = [1, 2] if name == "mamba" else [0, 1, 2]
    for value, key in zip(values, KEYS, strict=True):
        with torch.no_grad():
            states = model(torch.tensor([key]), output_hidden_states=True).hidden_states
        expected = torch.stack([states[tap - shift][0, -1] for tap in taps])
        torch.testing.assert_close(value[taps], expected, rtol=1e-4, atol=1e-5)


def test_the_pad_position_is_not_what_is_read(donor):
    """Reading the last column, the mistake seen in the wild, gives another value for every shorter key."""
    width = max(len(key) for key in KEYS)
    padded = torch.tensor([key + [0] * (width - len(key)) for key in KEYS])
    with torch.no_grad():
        wrong = donor.model(padded, output_hidden_states=True).hidden_states[2][:, -1]
    right = donor_values(donor, (2,), KEYS, max_tokens=1000)[:, 0]
    distance = (wrong - right).norm(dim=1)
    shorter = torch.tensor([len(key) < width for key in KEYS])
    assert (distance[shorter] > 1e-2).all()


def test_the_deepest_tap_is_taken_before_the_final_norm(donor):
    blocks = donor_blocks(donor)
    seen = []
    handle = blocks[-1].register_forward_hook(
        lambda _m, _a, out: seen.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.no_grad():
        normed = donor.model.model(torch.tensor([KEYS[0]])).last_hidden_state[0, -1]
    handle.remove()
    value = donor_values(donor, (donor.num_blocks,), [KEYS[0]], max_tokens=8)[0, 0]
    torch.testing.assert_close(value, seen[0][0, -1], rtol=1e-5, atol=1e-5)
    assert (value - normed).norm() > 1e-2


@pytest.mark.parametrize("taps", [(0,), (1,), (0, 2), (3,)])
def test_only_the_blocks_up_to_the_deepest_tap_run(donor, taps):
    ran = []
    handles = [
        block.register_forward_pre_hook(lambda _m, _a, place=place: ran.append(place))
        for place, block in enumerate(donor_blocks(donor))
    ]
    norm_ran = []
    handles.append(donor.model.model.norm.register_forward_pre_hook(lambda _m, _a: norm_ran.append(True)))
    values = donor_values(donor, taps, KEYS[:2], max_tokens=100)
    for handle in handles:
        handle.remove()
    assert values.shape == (2, len(taps), donor.value_dim)
    assert [place for place in ran if place >= max(1, taps[-1])] == []
    assert sorted(set(ran)) == list(range(taps[-1])) or taps == (0,)
    assert norm_ran == []


def test_the_donor_is_left_as_it_was(donor):
    """transformers may keep hooks of its own; ours go."""

    def hooks():
        return [len(block._forward_hooks) + len(block._forward_pre_hooks) for block in donor_blocks(donor)]

    before = hooks()
    donor_values(donor, (0, 1, 3), KEYS, max_tokens=100)
    assert hooks() == before


def test_taps_out_of_reach_name_the_number_of_blocks(donor):
    assert check_taps(donor, [0, 3]) == (0, 3)
    with pytest.raises(DonorError, match=r"tap 4: .* has 3 blocks, so taps run from 0 \(embeddings\) to 3"):
        check_taps(donor, (1, 4))
    for taps in ((), (2, 1), (1, 1), (-1,)):
        with pytest.raises(DonorError, match="ascending"):
            check_taps(donor, taps)


def test_batches_cover_every_key_once_within_the_budget():
    lengths = np.random.default_rng(0).integers(1, 9, size=200)
    batches = list(batches_by_length(lengths, 24))
    assert sorted(np.concatenate(batches)) == list(range(200))
    assert all(len(batch) * lengths[batch].max() <= 24 for batch in batches)
    assert max(len(batch) for batch in batches) > 4


def test_missing_weights_are_refused(donor, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tiny_donor(tmp_path / "donor")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DonorError, match=r"1 weights are missing .* model\.layers\.1\.mlp\.up_proj\.weight"):
        open_donor(folder)


def test_other_weights_have_another_fingerprint(donor, tmp_path):
    assert open_donor(tiny_donor(tmp_path / "same")).fingerprint == donor.fingerprint
    assert open_donor(tiny_donor(tmp_path / "other", seed=2)).fingerprint != donor.fingerprint


def test_places_that_hold_no_donor(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "weights.bin").write_bytes(b"x")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF but not really")
    (tmp_path / "folder").mkdir()
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_text("{}")
    monkeypatch.setenv("MEMGRAFT_CACHE", str(tmp_path / "cache"))
    for place, message in (
        (tmp_path / "weights.bin", r"expected a folder, a \.gguf file or a hub id"),
        (tmp_path / "broken.gguf", "cannot read this GGUF file"),
        (tmp_path / "folder", r"found 0 \.gguf files and no config\.json"),
        (tmp_path / "pickled", "pickled weights are never loaded"),
        (tmp_path / "absent" / "deeper" / "model.gguf", "no such file or folder"),
        ("memgraft-tests/absent", "HF_HUB_OFFLINE is set"),
    ):
        with pytest.raises(DonorError, match=message):
            donor_folder(place)
    assert not list((tmp_path / "cache").rglob("config.json"))


def test_a_name_that_the_hub_does_not_have_is_refused_without_a_download(monkeypatch):
    asked = []

    class Hub:
        """The hub's library: one repository in its cache, one more on the hub."""

        def model_info(self, name, timeout):
            asked.append(name)
            if name == "nobody/unreachable":
                raise RuntimeError("no route")
            if name != "somebody/there":
                raise OSError("404")

    def snapshot(name, *, local_files_only):
        assert local_files_only
        if name != "somebody/cached":
            raise huggingface_hub.errors.LocalEntryNotFoundError("not in the cache")

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refuse_donor("somebody/cached")
    with pytest.raises(DonorError, match="HF_HUB_OFFLINE is set and the hub's cache does not hold it"):
        refuse_donor("somebody/there")
    assert not asked
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    refuse_donor("somebody/cached")
    refuse_donor("somebody/there")
    for name, found in (("nobody/absent", "404"), ("nobody/unreachable", "no route")):
        with pytest.raises(DonorError, match=rf"the model hub cannot give it \({found}\)"):
            refuse_donor(name)
    assert asked == ["somebody/there", "nobody/absent", "nobody/unreachable"]
