"""Saving and loading a graft; everything that does not match is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from grafted_models import VOCAB, config, grafted, make_bank, prompts, recipient, wake
from memgraft.bank import Bank
from memgraft.config import FallbackConfig
from memgraft.errors import ConfigError, FingerprintError, FormatError, GraftError, StorageError
from memgraft.integrations.transformers import graft, load_graft, save_graft
from memgraft.nn.compression import CompressedVocabulary


@pytest.fixture
def saved(bank: Any, tmp_path: Path) -> Path:
    return save_graft(grafted(bank), tmp_path / "graft")


def test_round_trip(bank: Any, saved: Path) -> None:
    ids = prompts()
    expected = grafted(bank)(ids).logits
    loaded = load_graft(recipient(), saved, bank=bank)
    assert torch.equal(loaded(ids).logits, expected)
    # What a training keeps is a folder with the graft in it.
    assert torch.equal(load_graft(recipient(), saved.parent, bank=bank)(ids).logits, expected)
    assert sorted(path.name for path in saved.iterdir()) == ["README.md", "graft.json", "graft.safetensors"]
    assert bank.fingerprint in (saved / "README.md").read_text()
    # The bank's rows are not in the folder.
    assert not any(bank.num_rows in tensor.shape for tensor in load_file(saved / "graft.safetensors").values())


def test_round_trip_of_everything_at_once(two_taps: Any, tmp_path: Path) -> None:
    vocabulary = CompressedVocabulary(np.arange(VOCAB) // 2)
    options = config(
        sites=(1, 2),
        taps=(7, 3),
        gate="signed_sqrt",
        init="scalar",
        control="shuffled",
        seed=4,
        fallback=FallbackConfig(orders=(1, 3), table_size=(31, 50), num_heads=2, dim=8, pad_token_id=5),
        eos_token_id=(2, 9),
    )
    model = wake(graft(recipient(), two_taps, options, name="other", vocabulary=vocabulary))
    for name, parameter in model.named_parameters():
        if name.endswith("scale"):
            parameter.data.fill_(0.7)
    saved = save_graft(model, tmp_path / "graft", bank_path=str(two_taps.path))
    ids = prompts()
    ids[0, 5] = 9
    expected = model(ids).logits
    loaded = load_graft(recipient(), saved)
    assert torch.equal(loaded(ids).logits, expected)
    renamed = load_graft(recipient(), saved, name="renamed")
    assert any(".memgraft.renamed." in key for key in renamed.state_dict())
    assert torch.equal(renamed(ids).logits, expected)
    # Saved again, it is the same but for the name and the resolved EOS.
    again = json.loads((save_graft(loaded, tmp_path / "again") / "graft.json").read_text())
    first = json.loads((saved / "graft.json").read_text())
    first["bank"]["path"] = None
    assert again == first


def test_relative_bank_path_is_meant_from_the_folder(tmp_path: Path) -> None:
    bank = make_bank(tmp_path / "bank")
    saved = save_graft(grafted(bank), tmp_path / "graft", bank_path="../bank")
    ids = prompts()
    assert torch.equal(load_graft(recipient(), saved)(ids).logits, grafted(bank)(ids).logits)


def test_bank_is_needed(saved: Path) -> None:
    with pytest.raises(GraftError, match="names no bank path"):
        load_graft(recipient(), saved)


def test_another_bank_is_refused(saved: Path, two_taps: Any) -> None:
    model = recipient()
    with pytest.raises(FingerprintError, match="trained on another bank"):
        load_graft(model, saved, bank=two_taps)
    assert "memgraft" not in "".join(model.state_dict())


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_weights_that_do_not_match_are_refused(change: str, saved: Path, bank: Any) -> None:
    weights = load_file(saved / "graft.safetensors")
    key = "sites.2.memory_value.weight"
    if change == "missing":
        del weights[key]
        message = f"missing weights: {key}; extra weights: none"
    elif change == "extra":
        weights["sites.2.surplus"] = torch.zeros(1)
        message = r"missing weights: none; extra weights: sites\.2\.surplus"
    else:
        weights[key] = weights[key][:, :-1].contiguous()
        message = "expected shape"
    save_file(weights, saved / "graft.safetensors")
    model = recipient()
    ids = prompts()
    before = model(ids).logits
    with pytest.raises(GraftError, match=message):
        load_graft(model, saved, bank=bank)
    # Nothing is left behind.
    assert torch.equal(model(ids).logits, before)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_another_recipient_is_refused(saved: Path, bank: Any) -> None:
    with pytest.raises(GraftError, match="hidden_dim 32, found 16"):
        load_graft(recipient(hidden_size=16), saved, bank=bank)
    with pytest.raises(ConfigError, match="do not share a tokenizer"):
        load_graft(recipient(vocab_size=20), saved, bank=bank)


def test_a_recipient_of_another_architecture_is_warned_of(saved: Path, bank: Any) -> None:
    with pytest.warns(UserWarning, match=r"trained on a recipient of type 'llama', this one is 'gpt2'"):
        load_graft(recipient("gpt2"), saved, bank=bank)


def test_damaged_folders_are_refused(saved: Path, bank: Any, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot read"):
        load_graft(recipient(), tmp_path / "nothing", bank=bank)
    manifest = json.loads((saved / "graft.json").read_text())
    (saved / "graft.json").write_text(json.dumps({**manifest, "format_version": 9}))
    with pytest.raises(FormatError, match="expected graft format 1, found 9"):
        load_graft(recipient(), saved, bank=bank)
    (saved / "graft.json").write_text("{")
    with pytest.raises(FormatError, match="not JSON"):
        load_graft(recipient(), saved, bank=bank)
    del manifest["eos_ids"]
    (saved / "graft.json").write_text(json.dumps(manifest))
    with pytest.raises(FormatError, match="eos_ids missing"):
        load_graft(recipient(), saved, bank=bank)


def test_truncated_weights_are_refused(saved: Path, bank: Any) -> None:
    path = saved / "graft.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(FormatError, match=r"graft\.safetensors"):
        load_graft(recipient(), saved, bank=bank)


def small_tokenizer(words: list[str]) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=words[0])


def test_another_tokenizer_is_refused(bank: Any, tmp_path: Path) -> None:
    words = ["<unk>", *"abcdefghijklmnopqrstuvwxyz", *"ABCDEFGHIJKLM"]
    tokenizer = small_tokenizer(words)
    fallback = FallbackConfig(table_size=31, num_heads=2, dim=8)
    model = graft(recipient(), bank, config(fallback=fallback), tokenizer=tokenizer)
    saved = save_graft(model, tmp_path / "graft")
    ids = prompts()
    # The compressed vocabulary travels with the graft: no tokenizer is needed to load it.
    assert torch.equal(load_graft(recipient(), saved, bank=bank)(ids).logits, model(ids).logits)
    load_graft(recipient(), saved, bank=bank, tokenizer=tokenizer)
    other = small_tokenizer([words[0], words[2], words[1], *words[3:30], "a1", *words[31:]])
    with pytest.raises(FingerprintError, match="differently from the graft's"):
        load_graft(recipient(), saved, bank=bank, tokenizer=other)


def test_bank_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    from memgraft.integrations.transformers.attach import tokenizer_fingerprint

    tokenizer = small_tokenizer(["<unk>", *"abcdefghijklmnopqrstuvwxyz", *"ABCDEFGHIJKLM"])
    other = small_tokenizer(["<unk>", *"zyxwvutsrqponmlkjihgfedcba", *"ABCDEFGHIJKLM"])
    bank = make_bank(tmp_path / "bank", tokenizer={"fingerprint": tokenizer_fingerprint(tokenizer)})
    graft(recipient(), bank, config(), tokenizer=tokenizer)
    with pytest.raises(FingerprintError, match="keys are of tokenizer"):
        graft(recipient(), bank, config(), tokenizer=other)


def test_unknown_graft_cannot_be_saved(bank: Any, tmp_path: Path) -> None:
    with pytest.raises(GraftError, match="expected a graft"):
        save_graft(recipient(), tmp_path / "graft")
    with pytest.raises(GraftError, match="named 'x'"):
        save_graft(grafted(bank), tmp_path / "graft", name="x")
    assert Bank.open(bank.path).fingerprint == bank.fingerprint
