"""Masks and boundaries that calls bring, and calls that read other memories than the graft's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import StaticCache

from grafted_models import CACHE, EOS, PAD, VOCAB, grafted, make_bank, prompts, random_keys, recipient
from memgraft.bank import Bank, open_memory
from memgraft.errors import ArgumentError, FingerprintError, GraftError
from memgraft.keyset import KeySet
from memgraft.torch import graft, load_graft, record_telemetry, save_graft


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Bank:
    """Other keys, one of them longer than any of the first bank, in the same value space."""
    keys = [*random_keys(100, seed=9), (7, 8, 9, 10, 11, 12)]
    return make_bank(tmp_path_factory.mktemp("other") / "bank", keys=keys, seed=9)


def foreign(path: Path, **facts: Any) -> Bank:
    """A bank of another value space."""
    values = np.ones((1, 1, 24), np.float32)
    return Bank.create(path, keys=KeySet.from_keys([(5, 6)], vocab_size=VOCAB), values=values, taps=(2,), **facts)


# ------------------------------------------------------------------ boundaries


def block_mask(lengths: tuple[int, ...]) -> torch.Tensor:
    """(1, 1, T, T), additive, as transformers makes it of packed documents."""
    documents = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    seen = (documents[:, None] == documents) & torch.ones(sum(lengths), sum(lengths)).tril().bool()
    return torch.where(seen, 0.0, torch.finfo(torch.float32).min)[None, None]


@torch.no_grad()
def test_a_mask_of_four_dimensions_says_where_documents_start(bank: Any) -> None:
    model, ids, lengths = grafted(bank), prompts(1, 12), (5, 7)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    apart = [model(part, use_cache=False).logits for part in ids.split(lengths, dim=1)]
    packed = model(ids, attention_mask=block_mask(lengths), position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(packed, torch.cat(apart, dim=1), atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(
    "said",
    [
        {"seq_idx": torch.tensor([[0] * 5 + [1] * 7], dtype=torch.int32)},
        {"cu_seq_lens_q": torch.tensor([0, 5, 12]), "cu_seq_lens_k": torch.tensor([0, 5, 12])},
        {"position_ids": torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6]])},
    ],
)
def test_the_model_reads_every_spelling_of_boundaries(bank: Any, said: dict[str, Any]) -> None:
    from memgraft.data import MemoryBatch

    model, ids = grafted(bank), prompts(1, 12)
    segments = torch.tensor([[0] * 5 + [1] * 7], dtype=torch.int32)
    expected = model(ids, memgraft=MemoryBatch.look_up(bank, ids, segments), use_cache=False, **said).logits
    assert torch.equal(model(ids, use_cache=False, **said).logits, expected)
    plain = {name: value for name, value in said.items() if name == "position_ids"}
    whole = MemoryBatch.look_up(bank, ids, torch.zeros_like(segments))
    assert not torch.equal(model(ids, memgraft=whole, use_cache=False, **plain).logits, expected)


def test_what_is_not_understood_is_refused(bank: Any) -> None:
    model = grafted(bank)
    with pytest.raises(GraftError, match="does not tell documents and padding apart"):
        model(prompts(), attention_mask=torch.ones(2, 1, 7, 20))
    with pytest.raises(ArgumentError, match="seq_boundaries"):
        model(prompts(), seq_boundaries=torch.zeros(2, 3))


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
def test_a_static_cache_with_a_mask_of_full_length(bank: Any, padded: bool) -> None:
    model, ids, room = grafted(bank), prompts(2, 10), 16
    lead = 3 if padded else 0
    mask = torch.zeros(2, room, dtype=torch.long)
    mask[0, lead:10] = mask[1, :10] = 1
    positions = (mask[:, :10].cumsum(1) - 1).clamp_min(0)
    full = model(ids, attention_mask=mask[:, :10], position_ids=positions, use_cache=False).logits
    cache, seen, outs = StaticCache(config=model.config, max_cache_len=room), 0, []
    now = torch.zeros_like(mask)
    for n in (6, 1, 2, 1):
        now[:, seen : seen + n] = mask[:, seen : seen + n]
        step = {"attention_mask": now, "position_ids": positions[:, seen : seen + n], CACHE: cache}
        outs.append(model(ids[:, seen : seen + n], use_cache=True, **step).logits)
        seen += n
    got = torch.cat(outs, 1)
    torch.testing.assert_close(got[1], full[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(got[0, lead:], full[0, lead:], atol=1e-5, rtol=0)


# ------------------------------------------------------------------ memories by call and by row

MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "samples": {"do_sample": True, "num_return_sequences": 2},
    "static": {"cache_implementation": "static", "disable_compile": True},
    "no_cache": {"use_cache": False},
    "chunked": {"prefill_chunk_size": 7},
}


@torch.no_grad()
@pytest.mark.parametrize("mode", list(MODES))
def test_rows_of_a_batch_read_memories_of_their_own(bank: Any, other: Bank, mode: str) -> None:
    model, ids = grafted(bank), prompts(2, 20)
    options = {"do_sample": False, "max_new_tokens": 8, **MODES[mode]}
    run = {"output_logits": True, "return_dict_in_generate": True}
    torch.manual_seed(0)
    out = model.generate(ids, memgraft=[None, other], **options, **run)
    copies = len(out.sequences) // 2
    # Each sequence as a full forward of a model that was grafted with its memory alone.
    twin = graft(recipient(), other, model.model.memgraft_runtimes["default"].config)
    twin.load_state_dict(model.state_dict())
    for row, sequence in enumerate(out.sequences):
        whole = (model if row < copies else twin)(sequence[None], use_cache=False).logits
        named = model(sequence[None], use_cache=False, memgraft=None if row < copies else other).logits
        assert torch.equal(whole, named)
        if "num_beams" not in options:
            got = torch.stack(out.logits, 1)[row]
            torch.testing.assert_close(got, whole[0, 19:-1], atol=1e-5, rtol=0)
    if options["do_sample"]:
        return
    base = model.generate(ids, **options)
    alone = twin.generate(ids, **options)
    width = min(out.sequences.shape[1], base.shape[1], alone.shape[1])
    assert torch.equal(out.sequences[0, :width], base[0, :width])
    assert torch.equal(out.sequences[1, :width], alone[1, :width])


@torch.no_grad()
def test_a_row_without_another_memory_is_bit_equal(bank: Any, other: Bank) -> None:
    model, ids = grafted(bank), prompts(2, 20)
    base = model(ids).logits
    mixed = model(ids, memgraft=[None, other]).logits
    assert torch.equal(mixed[0], base[0])
    assert not torch.equal(mixed[1], base[1])
    assert torch.equal(model(ids, memgraft=bank).logits, base)
    assert torch.equal(model(ids).logits, base)


def test_memories_that_do_not_fit_are_refused(bank: Any, other: Bank, tmp_path: Path) -> None:
    model, ids = grafted(bank), prompts(2, 20)
    far = foreign(tmp_path / "far", donor={"fingerprint": "another"})
    for call in (model, lambda *args, **kwargs: model.generate(*args, max_new_tokens=1, **kwargs)):
        with pytest.raises(FingerprintError, match="the graft reads values of space"):
            call(ids, memgraft=far)
        with pytest.raises(GraftError, match="names 3 memories for a batch of 2 rows"):
            call(ids, memgraft=[other, other, None])
        for path in ("bank/", Path("bank"), [None, "bank/"], {"default": "bank/"}):
            with pytest.raises(ArgumentError, match=r"expected an open bank, got the path .*bank"):
                call(ids, memgraft=path)
    with pytest.raises(GraftError, match="only without a control"):
        grafted(bank, control="shuffled")(ids, memgraft=other)
    with torch.no_grad():
        cache = getattr(model(ids[:, :10], use_cache=True, memgraft=other), CACHE)
        with pytest.raises(GraftError, match="filled with another memory"):
            model(ids[:, 10:], **{CACHE: cache})
        got = model(ids[:, 10:], memgraft=other, **{CACHE: cache}).logits
        torch.testing.assert_close(got, model(ids, memgraft=other, use_cache=False).logits[:, 10:], atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_batch_of_another_bank_is_not_read_as_this_one(bank: Any, other: Bank, tmp_path: Path) -> None:
    import pickle

    from memgraft.data import GraftCollator, prefetch

    model, ids = grafted(bank), prompts(2, 20)
    batch = GraftCollator(other)([{"input_ids": row} for row in ids])
    memory = pickle.loads(pickle.dumps(batch["memgraft"]))
    with pytest.raises(FingerprintError, match="holds rows of bank"):
        model(ids, memgraft=memory)
    with pytest.raises(FingerprintError, match="to stage them from"):
        next(iter(prefetch([batch], bank)))
    # Staged values of the same space are what generate(memgraft=other) reads.
    assert torch.equal(model(ids, memgraft=memory.stage(other)).logits, model(ids, memgraft=other).logits)
    far = Bank.create(
        tmp_path / "far", keys=other.keys, values=other.floats(np.arange(len(other))), taps=(2,), donor={"name": "x"}
    )
    with pytest.raises(FingerprintError, match="holds rows of bank"):
        model(ids, memgraft=GraftCollator(far)([{"input_ids": row} for row in ids])["memgraft"].stage(far))


# ------------------------------------------------------------------ value spaces


def test_a_space_is_what_the_donor_read_and_where(tmp_path: Path) -> None:
    facts = {"fingerprint": "d", "prefix": [198], "batch_tokens": 512, "compute_dtype": "float32"}
    first = foreign(tmp_path / "a", donor=facts)
    assert foreign(tmp_path / "b", donor={**facts, "batch_tokens": 64}, dtype="int8").space == first.space
    for place, (name, value) in enumerate({"fingerprint": "e", "prefix": [2], "contexts": 4}.items()):
        assert foreign(tmp_path / f"c{place}", donor={**facts, name: value}).space != first.space
    # What was written before there were prefixes.
    old, new = {"fingerprint": "d", "prepend_bos": False}, {"fingerprint": "d", "prefix": []}
    assert foreign(tmp_path / "old", donor=old).space == foreign(tmp_path / "new", donor=new).space


def test_a_graft_takes_another_bank_of_its_space_on_request(bank: Any, other: Bank, tmp_path: Path) -> None:
    import json

    model = grafted(bank)
    save_graft(model, tmp_path / "graft")
    with pytest.raises(FingerprintError, match='rows="any"'):
        load_graft(recipient(), tmp_path / "graft", bank=other)
    far = foreign(tmp_path / "far", donor={"fingerprint": "another"})
    with pytest.raises(FingerprintError, match="of space"):
        load_graft(recipient(), tmp_path / "graft", bank=far, rows="any")
    loaded = load_graft(recipient(), tmp_path / "graft", bank=other, rows="any")
    ids = prompts()
    assert torch.equal(loaded(ids).logits, model(ids, memgraft=other).logits)
    save_graft(loaded, tmp_path / "again")
    facts = json.loads((tmp_path / "again" / "graft.json").read_text())["bank"]
    assert (facts["fingerprint"], facts["trained_on"]) == (other.fingerprint, bank.fingerprint)
    assert bank.fingerprint in (tmp_path / "again" / "README.md").read_text()
    with record_telemetry(loaded) as telemetry:
        loaded(ids)
    assert telemetry.banks == {"default": {"reads": other.fingerprint, "trained_on": bank.fingerprint}}


def test_paths_stand_in_for_banks(bank: Any, tmp_path: Path) -> None:
    from memgraft.data import GraftCollator

    ids = prompts()
    by_path = graft(recipient(), str(bank.path), grafted(bank).model.memgraft_runtimes["default"].config)
    assert by_path.model.memgraft_runtimes["default"].bank.fingerprint == bank.fingerprint
    rows = [{"input_ids": row} for row in ids]
    assert torch.equal(GraftCollator(bank.path)(rows)["memgraft"].rows, GraftCollator(bank)(rows)["memgraft"].rows)
    with pytest.raises(ArgumentError, match="expected an open bank or the path"):
        open_memory(7)  # type: ignore[arg-type]


def test_an_embedding_that_shrank_after_the_graft(bank: Any, tmp_path: Path) -> None:
    model = grafted(bank)
    model.resize_token_embeddings(VOCAB - 4)
    ids = prompts().clamp_max(VOCAB - 5)
    expected = model(ids).logits
    save_graft(model, tmp_path / "graft")
    other = recipient()
    other.resize_token_embeddings(VOCAB - 4)
    # The padding token of the hashes is the graft's, whatever the recipient's config says by now.
    other.config.pad_token_id = EOS
    other.load_state_dict({k: v for k, v in model.state_dict().items() if ".memgraft." not in k})
    loaded = load_graft(other, tmp_path / "graft", bank=bank)
    assert torch.equal(loaded(ids).logits, expected)
    assert PAD != EOS
