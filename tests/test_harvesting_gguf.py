"""GGUF donors read text by the cut that their file names; where it is not known, what is lost is said."""

import numpy as np
import pytest
from tokenizers import pre_tokenizers

from memgraft.errors import DonorError
from memgraft.harvesting import open_donor
from memgraft.harvesting.gguf import STAGE, gguf_blocks
from memgraft.harvesting.setup import refuse_taps

gguf = pytest.importorskip("gguf")

TEXT = "it's IT'S 12345  a\n\n b"


def write_gguf(path, cut):
    """A llama of one block, width 32, with a byte-level vocabulary in which digits, quotes and blanks can merge."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("1", "2"), ("12", "3"), ("'", "S"), ("Ġ", "Ġ"), ("Ċ", "Ċ"), ("T", "'"), ("3", "4")]
    tokens = [*letters, *(left + right for left, right in merges), "<|endoftext|>"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(cut)
    writer.add_token_list(tokens)
    writer.add_token_merges([f"{left} {right}" for left, right in merges])
    writer.add_token_types([1] * (len(tokens) - 1) + [3])
    writer.add_bos_token_id(len(tokens) - 1)
    writer.add_eos_token_id(len(tokens) - 1)
    generator = np.random.default_rng(0)
    shapes = {"token_embd": (len(tokens), 32), "output": (len(tokens), 32), "output_norm": (32,)}
    for name, shape in {"attn_norm": (32,), "ffn_norm": (32,), "ffn_down": (32, 64)}.items():
        shapes[f"blk.0.{name}"] = shape
    shapes |= {f"blk.0.attn_{name}": (32, 32) for name in ("q", "k", "v", "output")}
    shapes |= {f"blk.0.ffn_{name}": (64, 32) for name in ("gate", "up")}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", generator.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMGRAFT_CACHE", str(tmp_path / "cache"))


EXPECTED = {
    "gpt-2": "i t ' s Ġ I T ' S Ġ 123 4 5 Ġ Ġ a ĊĊ Ġ b",
    "smollm": "i t ' s Ġ I T ' S Ġ 1 2 3 4 5 Ġ Ġ a ĊĊ Ġ b",
    "qwen2": "i t ' s Ġ I T 'S Ġ 1 2 3 4 5 Ġ Ġ a ĊĊ Ġ b",
    "llama-bpe": "i t ' s Ġ I T 'S Ġ 123 4 5 Ġ Ġ a ĊĊ Ġ b",
}


@pytest.mark.parametrize("cut", EXPECTED)
def test_the_cut_that_the_file_names_is_taken(cut, tmp_path, capfd):
    seen = []
    donor = open_donor(
        write_gguf(tmp_path / "m.gguf", cut), compute_dtype="float32", progress=lambda *call: seen.append(call)
    )
    pieces = [donor.tokenizer.piece(token) for token in donor.tokenizer.encode([TEXT])[0]]
    assert " ".join(pieces) == EXPECTED[cut]
    assert donor.tokenizer_losses == ()
    assert "tokenizer_losses" not in donor.facts()
    assert "de-quantizing" not in capfd.readouterr().err, "transformers draws no bar of its own"
    assert {stage for stage, _, _ in seen} == {STAGE}
    assert len({done / total for _, done, total in seen}) > 3, "progress is shown tensor by tensor"
    assert seen[-1][1] == seen[-1][2]


def test_a_tap_beyond_the_donor_is_refused_by_the_head_of_the_file(tmp_path, monkeypatch):
    path = write_gguf(tmp_path / "donor.gguf", "gpt-2")
    assert gguf_blocks(path) == 1
    with pytest.raises(DonorError, match=r"tap 2: donor donor\.gguf has 1 blocks"):
        refuse_taps(path, (2,))
    refuse_taps(path, (1,))
    (tmp_path / "torn.gguf").write_bytes(path.read_bytes()[:40])
    assert gguf_blocks(tmp_path / "torn.gguf") is None
    (tmp_path / "text.gguf").write_bytes(b"no model")
    assert gguf_blocks(tmp_path / "text.gguf") is None


def test_an_unknown_cut_is_said(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", "mystery")
    with pytest.warns(UserWarning, match=r"names the cut 'mystery', which is not known here; the ids of \['year 2024"):
        donor = open_donor(path, compute_dtype="float32")
    assert len(donor.tokenizer_losses) == 1
    assert donor.facts()["tokenizer_losses"] == list(donor.tokenizer_losses)
    with pytest.warns(UserWarning, match="mystery"):
        open_donor(path, compute_dtype="float32")


def test_a_folder_converted_before_gets_its_cut_back(tmp_path):
    import json

    from memgraft.harvesting import donor_folder
    from memgraft.harvesting.gguf import NOTE_NAME

    path = write_gguf(tmp_path / "m.gguf", "smollm")
    folder = donor_folder(path)
    facts = json.loads((folder / "tokenizer.json").read_text())
    facts["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    (folder / "tokenizer.json").write_text(json.dumps(facts))
    (folder / NOTE_NAME).unlink()
    donor = open_donor(path, compute_dtype="float32")
    pieces = [donor.tokenizer.piece(token) for token in donor.tokenizer.encode([TEXT])[0]]
    assert " ".join(pieces) == EXPECTED["smollm"]
