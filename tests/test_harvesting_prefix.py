"""What stands before every key: chosen by measurement, recorded, refused where it is another one."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

from memgraft.errors import ArgumentError, FingerprintError
from memgraft.harvesting import Donor, find_prefix, harvest, open_tokenizer
from memgraft.keyset import KeySet
from tiny import WORDS, byte_bpe

VOCAB = 400


class SinkBlock(nn.Module):
    """Every first position gets one large direction, as in trained decoders; the others keep their token."""

    def forward(self, hidden_BTV: torch.Tensor) -> torch.Tensor:
        hidden_BTV = hidden_BTV.clone()
        hidden_BTV[:, 0, 0] += 100.0
        return hidden_BTV


class SinkModel(nn.Module):
    """Also sinks at the second position where the first holds the BOS, as SmolLM2's does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(VOCAB, 16)
        self.blocks = nn.ModuleList([SinkBlock(), nn.Identity()])

    def forward(self, input_ids, attention_mask, use_cache):
        hidden = self.embed(input_ids)
        if input_ids.shape[1] > 1:
            hidden[:, 1, 1] += 8.0 * (input_ids[:, 0] == 0)
        for block in self.blocks:
            hidden = block(hidden)
        return hidden


@pytest.fixture(scope="module")
def donor():
    return Donor(
        name="sink",
        model=SinkModel().eval(),
        tokenizer=open_tokenizer(byte_bpe([" ".join(WORDS)], VOCAB)),
        bos=0,
        num_blocks=2,
        value_dim=16,
        vocab_size=VOCAB,
        fingerprint="f" * 64,
        architecture="sink",
        compute_dtype="float32",
    )


def run(donor, out, **changes):
    tokenizer = byte_bpe([" ".join(WORDS)], VOCAB)
    keys = KeySet.from_keys([(token,) for token in range(300, 330)], vocab_size=VOCAB)
    options = {"recipient_tokenizer": tokenizer, "taps": (1,), "dtype": "fp32", "share_prefixes": False, **changes}
    return harvest(keys, donor=donor, out=out, **options)


def cosine(bank):
    rows = bank.floats(np.arange(len(bank), dtype=np.int32))[:, 0]
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows @ rows.T)[~np.eye(len(rows), dtype=bool)].mean()


def test_the_default_is_measured_and_keys_of_one_token_stay_apart(donor, tmp_path):
    bank = run(donor, tmp_path / "bank")
    facts = bank.manifest.donor
    assert facts["prefix_chosen"] == "auto"
    assert facts["prefix_probe"]["none"] > 0.95 > facts["prefix_probe"]["bos"] > facts["prefix_probe"]["newline"]
    assert facts["prefix"] == donor.tokenizer.encode(["\n"])[0]
    with pytest.warns(UserWarning, match=r"28 rows of 1 donor token \(100.0% of all counts\) are nearly one value"):
        alone = run(donor, tmp_path / "alone", prefix="none")
    assert list(alone.manifest.donor["rows_by_donor_length"]) == ["1"]
    assert alone.manifest.donor["prefix"] == []
    assert cosine(alone) > 0.95 > cosine(bank)
    assert alone.fingerprint != bank.fingerprint


def test_prefixes_as_people_give_them(donor):
    given = {asked: find_prefix(donor, asked, taps=(1,)) for asked in (None, "none", (), "bos", "\n", (5, 7))}
    assert [prefix.ids for prefix in given.values()] == [(), (), (), (0,), given["\n"].ids, (5, 7)]
    assert [prefix.name for prefix in given.values()] == ["none", "none", "none", "bos", "text", "ids"]
    assert donor.tokenizer.decode([given["\n"].ids]) == ["\n"]
    # Ids that have a name are called by it, since a probe hands its choice on as ids.
    assert find_prefix(donor, [0], taps=(1,)).name == "bos"
    assert find_prefix(donor, list(given["\n"].ids), taps=(1,)).name == "newline"
    assert find_prefix(donor, "auto", taps=(1,), prepend_bos=True).ids == (0,)
    assert find_prefix(donor, "\n", taps=(1,), prepend_bos=True).ids == (0, *given["\n"].ids)
    assert find_prefix(donor, "bos", taps=(1,), prepend_bos=True).ids == (0,)


def test_what_a_donor_cannot_read_is_refused(donor):
    headless = dataclasses.replace(donor, bos=None)
    with pytest.raises(ArgumentError, match="no BOS token"):
        find_prefix(headless, "bos", taps=(1,))
    with pytest.raises(ArgumentError, match="no BOS token"):
        find_prefix(headless, "none", taps=(1,), prepend_bos=True)
    assert "bos" not in (find_prefix(headless, "auto", taps=(1,)).probe or {})
    with pytest.raises(ArgumentError, match="ids 0 to 399, found 400"):
        find_prefix(donor, (3, VOCAB), taps=(1,))
    with pytest.raises(ArgumentError, match="makes no tokens"):
        find_prefix(donor, "", taps=(1,))
    with pytest.raises(ArgumentError, match="prefix 3"):
        find_prefix(donor, 3, taps=(1,))


def test_another_prefix_does_not_go_on_with_a_bank(donor, tmp_path):
    bank = run(donor, tmp_path / "bank")
    assert run(donor, tmp_path / "bank").fingerprint == bank.fingerprint
    assert run(donor, tmp_path / "bank", prefix=bank.manifest.donor["prefix"]).fingerprint == bank.fingerprint
    with pytest.raises(FingerprintError, match="donor prefix"):
        run(donor, tmp_path / "bank", prefix="none")


def test_a_resumed_harvest_keeps_the_prefix_that_was_measured(donor, tmp_path):
    """Another machine's rounding might choose otherwise; the rows of one bank stand behind one prefix."""
    bank = run(donor, tmp_path / "bank")
    recorded = {**bank.manifest.donor, "prefix": [9], "prefix_name": "stop"}
    assert find_prefix(donor, "auto", taps=(1,), recorded=recorded).ids == (9,)
    other = {**recorded, "fingerprint": "0" * 64}
    assert find_prefix(donor, "auto", taps=(1,), recorded=other).ids == tuple(bank.manifest.donor["prefix"])


@pytest.mark.filterwarnings("ignore:.*nearly one value")
def test_a_bank_of_before_prefixes_is_taken_for_what_it_is(donor, tmp_path):
    bank = run(donor, tmp_path / "bank", prefix="none")
    facts = json.loads((bank.path / "bank.json").read_text())
    for name in [name for name in facts["donor"] if name.startswith("prefix")]:
        del facts["donor"][name]
    facts["donor"]["prepend_bos"] = False
    _reseal(bank.path / "bank.json", facts)
    assert run(donor, tmp_path / "bank", prefix="none").num_rows == bank.num_rows
    with pytest.raises(FingerprintError, match="donor prefix"):
        run(donor, tmp_path / "bank")


def _reseal(path, facts):
    from memgraft._core import fingerprint_bytes

    content = {name: value for name, value in facts.items() if name not in ("fingerprint", "tool")}
    facts["fingerprint"] = fingerprint_bytes(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())
    path.write_text(json.dumps(facts))
