"""Which models are donors: mixtures of experts, quantised weights, several devices; and which are refused."""

import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from memgraft.errors import ArgumentError, DonorError
from memgraft.harvesting import harvest, open_donor
from memgraft.harvesting.causal import refuse_two_way
from memgraft.harvesting.forward import donor_values
from memgraft.keyset import KeySet
from tiny import byte_bpe, tiny_donor, tiny_text

KEYS = [[5, 6, 7], [5, 6], [9], [40, 3, 2, 8]]
SMALL = {
    "vocab_size": 320,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_donor(tmp_path_factory.mktemp("donors") / "llama")


def saved(folder, target, model):
    """``model`` with the tokenizer of the donor in ``folder``."""
    model.save_pretrained(target)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (target / name).write_bytes((folder / name).read_bytes())
    return target


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: transformers.BertLMHeadModel(transformers.BertConfig(**SMALL)), "bert.*reads both ways"),
        (
            lambda: transformers.RobertaForMaskedLM(transformers.RobertaConfig(**SMALL, pad_token_id=1)),
            "roberta.*reads both ways",
        ),
        (
            lambda: transformers.BartForConditionalGeneration(
                transformers.BartConfig(
                    vocab_size=320, d_model=32, encoder_layers=1, decoder_layers=2, encoder_ffn_dim=32,
                    decoder_ffn_dim=32, encoder_attention_heads=2, decoder_attention_heads=2,
                )
            ),
            "encoder|weights are missing",
        ),
        (
            lambda: transformers.T5ForConditionalGeneration(
                transformers.T5Config(vocab_size=320, d_model=32, num_layers=1, d_ff=32, num_heads=2, d_kv=16)
            ),
            "transformers cannot load",
        ),
        (
            lambda: transformers.ViTForImageClassification(
                transformers.ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
            ),
            "transformers cannot load",
        ),
    ],
    ids=["bert", "roberta", "bart", "t5", "vit"],
)  # fmt: skip
def test_models_that_are_no_causal_decoders_are_refused(folder, tmp_path, model, message):
    torch.manual_seed(0)
    place = saved(folder, tmp_path / "model", model())
    with pytest.raises(DonorError, match=message):
        open_donor(place, compute_dtype="float32")


def test_decoders_in_every_type_pass(folder):
    for dtype in ("float32", "bfloat16", "float16"):
        assert open_donor(folder, compute_dtype=dtype).compute_dtype == dtype


def test_a_mask_that_leaks_is_found(folder):
    """Nothing in the configuration says so."""
    donor = open_donor(folder, compute_dtype="float32")
    for block in donor.model.model.layers:
        block.self_attn.is_causal = False
    forward = donor.model.model.forward

    def leaking(*args, **options):
        size = options["input_ids"].shape[1]
        return forward(*args, **{**options, "attention_mask": torch.ones(1, 1, size, size, dtype=torch.bool)})

    donor.model.model.forward = leaking
    with pytest.raises(DonorError, match=r"donor leaky .* reads both ways, since a token moves the scores before it"):
        refuse_two_way(donor.model, "leaky")


def test_a_mixture_of_experts_is_harvested(folder, tmp_path):
    torch.manual_seed(4)
    config = transformers.MixtralConfig(
        **SMALL, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, initializer_range=0.2
    )
    place = saved(folder, tmp_path / "moe", transformers.MixtralForCausalLM(config))
    tokenizer = byte_bpe([tiny_text(1)], 300)
    keys = KeySet.from_keys([tokenizer.encode(text).ids[:4] for text in (" the king", " water", " a")], vocab_size=300)
    bank = harvest(
        keys,
        recipient_tokenizer=tokenizer,
        donor=place,
        taps=(1, 2),
        out=tmp_path / "bank",
        prefix="none",
        compute_dtype="float32",
        dtype="fp32",
    )
    donor = open_donor(place, compute_dtype="float32")
    for row in range(bank.num_rows):
        ids = donor.tokenizer.encode_inside(tokenizer.decode_batch([list(bank.keys[row])]))[0]
        with torch.no_grad():
            state = donor.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[1][0, -1]
        found = bank.values(np.array([row], np.int32))[0, 0]
        np.testing.assert_allclose(found, state.numpy(), rtol=1e-4, atol=1e-5)
    assert "quantised" not in bank.manifest.donor


def quantised(folder, target):
    """The donor with the weights of its blocks in fp8, a scale for each square of 16 x 16; and those weights again."""
    import shutil

    shutil.copytree(folder, target)
    weights = load_file(folder / "model.safetensors")
    stored, read = {}, {}
    for name, weight in weights.items():
        if not name.endswith("proj.weight"):
            stored[name] = read[name] = weight
            continue
        rows, columns = weight.shape
        squares = weight.view(rows // 16, 16, columns // 16, 16)
        scales = squares.abs().amax((1, 3)) / 448
        codes = (squares / scales[:, None, :, None]).to(torch.float8_e4m3fn)
        stored[name], stored[f"{name}_scale_inv"] = codes.view(rows, columns), scales.contiguous()
        read[name] = (codes.float() * scales[:, None, :, None]).view(rows, columns)
    save_file(stored, target / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((target / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8",
        "weight_block_size": [16, 16],
        "activation_scheme": "dynamic",
    }
    (target / "config.json").write_text(json.dumps(config))
    return read


def test_quantised_weights_are_read(folder, tmp_path):
    """On a CPU transformers turns fp8 back into numbers; on a card it computes with it, which is not run here."""
    pytest.importorskip("accelerate")
    read = quantised(folder, tmp_path / "fp8")
    donor = open_donor(tmp_path / "fp8", compute_dtype="float32")
    assert donor.quantised == donor.facts()["quantised"] == "fp8"
    expected = open_donor(folder, compute_dtype="float32")
    exact = donor_values(expected, (3,), KEYS, max_tokens=64)
    expected.model.load_state_dict(read, strict=False)
    found = donor_values(donor, (3,), KEYS, max_tokens=64)
    torch.testing.assert_close(found, donor_values(expected, (3,), KEYS, max_tokens=64), rtol=1e-4, atol=1e-4)
    assert (found - exact).abs().max() > 1e-3


def test_a_quantiser_that_is_not_there_is_named(folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "gptq")
    config = json.loads((tmp_path / "gptq" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "gptq" / "config.json").write_text(json.dumps(config))
    with pytest.raises(DonorError, match="transformers cannot load"):
        open_donor(tmp_path / "gptq", compute_dtype="float32")


def test_a_donor_on_several_devices(folder):
    """Spread by transformers; and with weights that come as a block runs, as where the cards are too small."""
    accelerate = pytest.importorskip("accelerate")
    plain = donor_values(open_donor(folder, compute_dtype="float32"), (0, 2, 3), KEYS, max_tokens=64, shared=True)
    spread = open_donor(folder, compute_dtype="float32", device="auto")
    torch.testing.assert_close(donor_values(spread, (0, 2, 3), KEYS, max_tokens=64, shared=True), plain)
    elsewhere = open_donor(folder, compute_dtype="float32")
    accelerate.cpu_offload(elsewhere.model, execution_device=torch.device("cpu"))
    assert next(elsewhere.model.parameters()).device.type == "meta"
    refuse_two_way(elsewhere.model, "elsewhere")
    torch.testing.assert_close(donor_values(elsewhere, (0, 2, 3), KEYS, max_tokens=64, shared=True), plain)


def test_auto_needs_accelerate(folder, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ArgumentError, match="device: auto needs accelerate"):
        open_donor(folder, device="auto")
