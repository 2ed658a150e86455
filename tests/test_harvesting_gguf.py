"""GGUF donors read text by the cut that their file names; where it is not known, what is lost is said."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from memgraft.errors import DonorError
from memgraft.harvesting import donor_folder, open_donor
from memgraft.harvesting.asked import refuse_taps
from memgraft.harvesting.gguf import PHASE, gguf_blocks
from memgraft.harvesting.gguf_tokenizer import by_scores

gguf = pytest.importorskip("gguf")

TEXT = "it's IT'S 12345  a\n\n b"


def byte_level_vocabulary(writer, cut):
    """Digits, quotes and blanks can merge."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("1", "2"), ("12", "3"), ("'", "S"), ("Ġ", "Ġ"), ("Ċ", "Ċ"), ("T", "'"), ("3", "4")]
    tokens = [*letters, *(left + right for left, right in merges), "<|endoftext|>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(cut)
    writer.add_token_list(tokens)
    writer.add_token_merges([f"{left} {right}" for left, right in merges])
    writer.add_token_types([1] * (len(tokens) - 1) + [3])
    writer.add_bos_token_id(len(tokens) - 1)
    writer.add_eos_token_id(len(tokens) - 1)
    return len(tokens)


PIECES = {"▁": -3.0, "▁▁": -1.0, "12": -2.0, "23": -1.5, "34": -5.0, "'s": -2.0, "it": -1.0, "▁it": -1.2, "▁a": -2.0}


def sentencepiece_vocabulary(writer, *, prefix=True, pieces=PIECES, model="llama"):
    """As Llama 2's files: bytes, letters, and pieces with scores; no merges."""
    letters = {letter: -20.0 - place for place, letter in enumerate("abitsx12345'")}
    scores = {"<unk>": 0.0, "<s>": 0.0, "</s>": 0.0} | {f"<0x{byte:02X}>": 0.0 for byte in range(256)}
    scores |= letters | pieces
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre("default")
    writer.add_token_list(list(scores))
    writer.add_token_scores(list(scores.values()))
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * (len(scores) - 259))
    writer.add_add_space_prefix(prefix)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    return len(scores)


def write_gguf(path, cut=None, vocabulary=byte_level_vocabulary, **options):
    """A llama of one block, width 32."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    size = vocabulary(writer, cut, **options) if cut is not None else vocabulary(writer, **options)
    writer.add_vocab_size(size)
    generator = np.random.default_rng(0)
    shapes = {"token_embd": (size, 32), "output": (size, 32), "output_norm": (32,)}
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
    assert {phase for phase, _, _ in seen} == {PHASE}
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


@pytest.mark.parametrize("prefix", [True, False])
def test_a_sentencepiece_vocabulary_is_read_by_its_scores(prefix, tmp_path):
    path = write_gguf(tmp_path / "m.gguf", vocabulary=sentencepiece_vocabulary, prefix=prefix)
    donor = open_donor(path, compute_dtype="float32")
    assert donor.tokenizer_losses == ()
    file = Tokenizer.from_file(str(donor_folder(path) / "tokenizer.json"))
    expected = {
        "it's 1234": "▁it 's ▁ 1 23 4",
        " it": "▁▁ it",
        "12 345": "▁ 12 ▁ 34 5",
        "a  a   a": "▁a ▁▁ a ▁▁ ▁a",
        "x\n\n a": "▁ x <0x0A> <0x0A> ▁a",
        "é": "▁ <0xC3> <0xA9>",
        "": "",
    }
    for text, pieces in expected.items():
        found = file.encode(text, add_special_tokens=False).tokens
        if not prefix:  # a word that stands inside a document
            found = file.encode(f" {text}" if text else "", add_special_tokens=False).tokens
        assert " ".join(found) == pieces, text
    keys = [[file.token_to_id(piece) for piece in ("▁it", "'s")], [file.token_to_id("it")]]
    assert donor.tokenizer.decode(keys) == ["it's", "it"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text("ab12 ▁", max_size=12), scores=st.lists(st.integers(-9, 0), min_size=8, max_size=8, unique=True))
def test_the_plain_rule_is_that_of_merges_where_no_scores_tie(text, scores):
    """Every pair of the vocabulary as a merge, the best-scored result first."""
    pieces = dict(zip(("ab", "ba", "12", "▁a", "▁▁", "aba", "▁ab", "b1"), scores, strict=True))
    ids = {piece: place for place, piece in enumerate([*"ab12▁", *pieces])}
    ranks = [-100.0] * 5 + [float(score) for score in pieces.values()]
    pairs = [(p[:cut], p[cut:]) for p in sorted(pieces, key=pieces.get, reverse=True) for cut in range(1, len(p))]
    merges = [pair for pair in pairs if pair[0] in ids and pair[1] in ids]
    normal = text.replace(" ", "▁")
    fast = Tokenizer(models.BPE(ids, merges)).encode(normal, add_special_tokens=False).ids
    assert by_scores(normal, ids, ranks) == fast


def test_what_sentencepiece_reads_otherwise_is_said(tmp_path, monkeypatch):
    path = write_gguf(tmp_path / "m.gguf", vocabulary=sentencepiece_vocabulary)
    from memgraft.harvesting import gguf_tokenizer

    monkeypatch.setattr(gguf_tokenizer, "by_scores", lambda text, *others, **named: [])
    with pytest.warns(UserWarning, match=r"merges that are derived from it; they give (\d+) of \1 probes"):
        donor = open_donor(path, compute_dtype="float32")
    assert "tokenizer.json reads them right" in donor.facts()["tokenizer_losses"][0]


def test_vocabularies_that_cannot_be_read_are_refused_or_said(tmp_path):
    path = write_gguf(tmp_path / "bert.gguf", vocabulary=sentencepiece_vocabulary, model="bert")
    with pytest.raises(DonorError, match="'bert'"):
        open_donor(path, compute_dtype="float32")

    def unigram(writer):
        size = sentencepiece_vocabulary(writer, model="t5")
        writer.add_precompiled_charsmap(b"\0\0\0\0")
        return size

    path = write_gguf(tmp_path / "t5.gguf", vocabulary=unigram)
    with pytest.warns(UserWarning, match=r"precompiled_charsmap\), which is not applied"):
        open_donor(path, compute_dtype="float32")


def test_a_cut_in_several_steps(tmp_path):
    donor = open_donor(write_gguf(tmp_path / "f.gguf", "falcon"), compute_dtype="float32")
    pieces = [donor.tokenizer.piece(token) for token in donor.tokenizer.encode(["it'S 12345 ="])[0]]
    assert " ".join(pieces) == "i t ' S Ġ 123 4 5 Ġ ="
    donor = open_donor(write_gguf(tmp_path / "d.gguf", "deepseek-coder"), compute_dtype="float32")
    pieces = [donor.tokenizer.piece(token) for token in donor.tokenizer.encode(["12\n\n a"])[0]]
    assert " ".join(pieces) == "1 2 Ċ Ċ Ġ a"


def test_a_folder_converted_before_gets_its_cut_back(tmp_path):
    import json

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
