"""Training: packing, checkpointing, autocast, accumulation, the stock Trainer, PEFT, several processes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from grafted_models import EOS, FIRST, PAD, VOCAB, grafted, prompts, recipient
from memgraft.data import GraftCollator, MemoryBatch
from memgraft.data.segments import from_batch
from memgraft.errors import TokenError
from memgraft.integrations.transformers import (
    TelemetryCallback,
    graft_layers,
    mark_trainable,
    optimizer_groups,
)
from memgraft.nn import mix

TOLERANCE = {"atol": 1e-6, "rtol": 0}


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], atol: float = 1e-6) -> None:
    assert got.keys() == expected.keys()
    assert any(".memgraft." in name and value.abs().max() > 0 for name, value in got.items())
    for name, value in got.items():
        torch.testing.assert_close(
            value, expected[name], atol=atol, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


def memory_of(bank: Any, ids: torch.Tensor, **batch: Any) -> MemoryBatch:
    return MemoryBatch.look_up(bank, ids, from_batch({"input_ids": ids, **batch}))


# ------------------------------------------------------------------ packing


def documents() -> list[torch.Tensor]:
    return [prompts(1, length, seed=length) for length in (7, 1, 15, 4)]


def separate_logits(model: Any, given: bool, bank: Any) -> torch.Tensor:
    parts = []
    for ids in documents():
        options = {"memgraft": memory_of(bank, ids)} if given else {}
        parts.append(model(ids, use_cache=False, **options).logits)
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("given", [False, True], ids=["looked_up_in_the_model", "given"])
@pytest.mark.parametrize("how", ["position_ids", "cu_seqlens", "segments"])
def test_packed_equals_separate(how: str, given: bool, bank: Any) -> None:
    model = grafted(bank)
    ids = torch.cat(documents(), dim=1)
    lengths = [d.shape[1] for d in documents()]
    position_ids = torch.cat([torch.arange(n) for n in lengths])[None]
    edges = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    # Attention itself is told by the position ids; what varies is how the memory is told.
    options: dict[str, Any] = {"position_ids": position_ids}
    memory = None
    if how == "segments":
        segments = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None].int()
        memory = MemoryBatch.look_up(bank, ids, segments)
    elif how == "cu_seqlens":
        edges_kwargs = {"cu_seq_lens_q": edges, "cu_seq_lens_k": edges}
        if given:
            memory = memory_of(bank, ids, cu_seq_lens_q=edges)
        else:
            options |= edges_kwargs
    elif given:
        memory = memory_of(bank, ids, position_ids=position_ids)
    if memory is not None:
        options["memgraft"] = memory if not given else memory.stage(bank)
    packed = model(ids, use_cache=False, **options).logits
    torch.testing.assert_close(packed, separate_logits(model, given, bank), **TOLERANCE)


def test_packed_gradients_equal_separate(bank: Any) -> None:
    model = grafted(bank)
    ids = torch.cat(documents(), dim=1)
    position_ids = torch.cat([torch.arange(d.shape[1]) for d in documents()])[None]
    probe = torch.randn(*ids.shape, VOCAB, generator=torch.Generator().manual_seed(0))
    (model(ids, position_ids=position_ids, use_cache=False).logits * probe).sum().backward()
    packed = gradients(model)
    model.zero_grad()
    (separate_logits(model, False, bank) * probe).sum().backward()
    assert_same_gradients(packed, gradients(model), atol=2e-5)


def test_right_padding_adds_nothing(bank: Any) -> None:
    model = grafted(bank)
    ids = prompts(1, 12)
    padded = torch.cat([ids, torch.full((1, 5), PAD)], dim=1)
    mask = (torch.arange(17) < 12).long()[None]
    out = model(padded, attention_mask=mask, use_cache=False).logits[:, :12]
    torch.testing.assert_close(out, model(ids, use_cache=False).logits, **TOLERANCE)


def test_looked_up_given_and_staged_agree(bank: Any) -> None:
    model = grafted(bank)
    ids = prompts()
    ids[0, 6] = EOS
    expected = model(ids).logits
    memory = memory_of(bank, ids)
    assert torch.equal(model(ids, memgraft=memory).logits, expected)
    assert torch.equal(model(ids, memgraft=memory.stage(bank)).logits, expected)
    assert torch.equal(model(ids, memgraft=memory.to_ids()).logits, expected)
    assert torch.equal(model(ids, memgraft={"default": memory}).logits, expected)


def test_tokens_past_the_banks_vocabulary_miss_in_the_collator_as_in_the_model(bank: Any) -> None:
    # Added tokens, and rows that only pad the embedding.
    model = grafted(bank, model_options={"vocab_size": VOCAB + 8})
    ids = prompts()
    known = memory_of(bank, ids).rows
    ids[0, 7], ids[1, 3] = VOCAB, VOCAB + 7
    batch = GraftCollator(bank)([{"input_ids": row} for row in ids])
    rows = batch["memgraft"].rows
    assert rows[0, 7] == rows[1, 3] == -1
    # They are in no key, so no key reaches across them either, and none from before is lost.
    assert torch.equal(rows[:, :3], known[:, :3])
    assert torch.equal(rows[0, 11:], known[0, 11:])
    assert torch.equal(model(**batch).logits, model(ids).logits)
    with pytest.raises(TokenError, match="found -1"):
        GraftCollator(bank)([{"input_ids": torch.tensor([5, -1, 7])}])
    # What the recipient does not have either is refused where it is known.
    with pytest.raises(TokenError, match=r"0\.\.47, found 48"):
        model(torch.tensor([[5, 48, 7]]))


# ------------------------------------------------------------------ recomputation, precision, accumulation


def recompute(model: Any, reentrant: bool) -> None:
    # transformers 5.23 renamed it.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": reentrant})


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant: bool, bank: Any) -> None:
    model = grafted(bank).train()
    one, two = prompts(seed=1), prompts(seed=2)
    # Two forwards before one backward: state outside the call would be that of the second.
    (model(one, labels=one).loss + model(two, labels=two).loss).backward()
    expected = gradients(model)
    model.zero_grad()
    recompute(model, reentrant)
    (model(one, labels=one).loss + model(two, labels=two).loss).backward()
    assert_same_gradients(gradients(model), expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_of_a_frozen_recipient(reentrant: bool, bank: Any) -> None:
    model = grafted(bank).train()
    mark_trainable(model)
    ids = prompts()
    model(ids, labels=ids).loss.backward()
    expected = gradients(model)
    model.zero_grad()
    recompute(model, reentrant)
    model(ids, labels=ids).loss.backward()
    assert_same_gradients(gradients(model), expected)


def test_bf16_autocast_keeps_the_gate_in_float32(bank: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = grafted(bank)
    ids = prompts()
    gates, projected = set(), set()
    real = mix.gate

    def watched(keys: torch.Tensor, queries: torch.Tensor, scales: torch.Tensor, kind: Any) -> torch.Tensor:
        alpha = real(keys, queries, scales, kind)
        gates.update({keys.dtype, scales.dtype, alpha.dtype})
        return alpha

    monkeypatch.setattr(mix, "gate", watched)
    for layer in graft_layers(model)["default"].values():
        for projection in (layer.memory_key, layer.fallback_key, layer.memory_value, layer.fallback_value):
            projection.register_forward_hook(lambda _, args, out: projected.add(out.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(ids, labels=ids)
    out.loss.backward()
    assert gates == {torch.float32}
    assert projected == {torch.bfloat16}
    with torch.no_grad():
        torch.testing.assert_close(out.logits.float(), model(ids).logits, atol=0.1, rtol=0.1)


def test_gradient_accumulation(bank: Any) -> None:
    model = grafted(bank).train()
    ids = prompts(4)
    model(ids, labels=ids).loss.backward()
    expected = gradients(model)
    model.zero_grad()
    for half in ids.split(2):
        (model(half, labels=half).loss / 2).backward()
    assert_same_gradients(gradients(model), expected)


@pytest.mark.parametrize("misses", ["all", "none"])
def test_every_parameter_gets_a_gradient(misses: str, bank: Any) -> None:
    model = grafted(bank).train()
    ids = prompts()
    memory = memory_of(bank, ids)
    rows = torch.full_like(memory.rows, -1) if misses == "all" else memory.rows.clamp_min(0)
    memory = MemoryBatch(rows=rows, orders=(rows >= 0).to(torch.uint8), segments=memory.segments)
    model(ids, labels=ids, memgraft=memory).loss.backward()
    missing = [name for name, p in model.named_parameters() if ".memgraft." in name and p.grad is None]
    assert missing == []


# ------------------------------------------------------------------ the Trainer


class Packed(Dataset[dict[str, torch.Tensor]]):
    """Rows of a language that keys predict: the token after 7 is always the one before it."""

    def __init__(self, size: int = 64) -> None:
        generator = torch.Generator().manual_seed(0)
        self.rows = torch.randint(FIRST, VOCAB, (size, 16), generator=generator)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


def trainer_arguments(path: Path, **options: Any) -> TrainingArguments:
    settings = {
        "output_dir": str(path),
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "report_to": [],
        "logging_steps": 2,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_num_workers": 0,
        "seed": 0,
    }
    return TrainingArguments(**{**settings, **options})


def train(model: Any, bank: Any, path: Path, *, mode: str = "handle", callbacks: Any = None, **options: Any) -> Trainer:
    trainer = Trainer(
        model=model,
        args=trainer_arguments(path, **options),
        train_dataset=Packed(),
        data_collator=GraftCollator(bank, mode=mode),
        callbacks=callbacks,
    )
    trainer.train()
    return trainer


def test_trainer_learns_and_collators_agree(bank: Any, tmp_path: Path) -> None:
    results = {}
    for mode in ("handle", "ids"):
        model = grafted(bank)
        trainer = train(model, bank, tmp_path, mode=mode)
        results[mode] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        state = torch.cat([p.detach().flatten() for p in model.parameters()])
        results[mode].append(float(state.double().sum()))
    assert results["handle"] == results["ids"]
    assert results["handle"][1] < results["handle"][0]


def test_trainer_telemetry(bank: Any, tmp_path: Path) -> None:
    model = grafted(bank)
    trainer = train(model, bank, tmp_path, callbacks=[TelemetryCallback()], gradient_accumulation_steps=2)
    logged = [entry for entry in trainer.state.log_history if "memgraft/default/site0/hit/gate_mean" in entry]
    assert len(logged) >= 2
    # Two logs of two steps of two batches of 4 x 16 tokens.
    seen = sum(logged[0][f"memgraft/default/site0/{kind}/positions"] for kind in ("hit", "miss"))
    assert seen == 2 * 2 * 4 * 16


def test_trainer_checkpoint_holds_the_graft_and_not_the_bank(bank: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = grafted(bank)
    train(model, bank, tmp_path, save_strategy="steps", save_steps=2)
    state = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    assert any(".memgraft." in key for key in state)
    assert not any(bank.num_rows in tensor.shape for tensor in state.values())
    resumed = grafted(bank)
    trainer = Trainer(
        model=resumed,
        args=trainer_arguments(tmp_path, max_steps=4),
        train_dataset=Packed(),
        data_collator=GraftCollator(bank),
    )
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for (name, got), expected in zip(resumed.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(got, expected, msg=lambda text, name=name: f"{name}: {text}")


# ------------------------------------------------------------------ PEFT


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT reads transformers' old name
def test_together_with_lora(bank: Any, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    from memgraft.integrations.peft import EXCLUDE_MODULES

    model = grafted(bank)
    ids = prompts()
    before = model(ids).logits
    generated = model.generate(ids, max_new_tokens=8, do_sample=False)
    lora = LoraConfig(r=2, target_modules="all-linear", exclude_modules=EXCLUDE_MODULES, task_type="CAUSAL_LM")
    wrapped = get_peft_model(model, lora)
    assert torch.equal(wrapped(input_ids=ids).logits, before)
    assert not any(".memgraft." in name for name, p in wrapped.named_parameters() if p.requires_grad)
    mark_trainable(wrapped)
    trained = {name for name, p in wrapped.named_parameters() if p.requires_grad}
    assert all("lora_" in name or ".memgraft." in name for name in trained)
    assert not any("lora_" in name and ".memgraft." in name for name in trained)
    assert any("lora_" in name for name in trained)
    assert torch.equal(wrapped.generate(input_ids=ids, max_new_tokens=8, do_sample=False), generated)
    optimizer = torch.optim.AdamW(optimizer_groups(wrapped, lr=1e-2))
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = wrapped(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    sequences = wrapped.generate(
        input_ids=ids, max_new_tokens=8, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    with torch.no_grad():
        whole = wrapped(input_ids=sequences.sequences, use_cache=False).logits[:, -9:-1]
    torch.testing.assert_close(torch.stack(sequences.logits, dim=1), whole, **TOLERANCE)


# ------------------------------------------------------------------ several processes


def _process(rank: int, world: int, port: int, bank_path: str, kind: str, out: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    try:
        from memgraft.bank import Bank

        bank = Bank.open(bank_path)
        model = grafted(bank).train()
        ids = prompts(2 * world)
        local = ids[2 * rank : 2 * rank + 2]
        if kind == "ddp":
            wrapped = torch.nn.parallel.DistributedDataParallel(model)
            memory = memory_of(bank, local)
            if rank == 1:
                # This rank sees misses alone: its memory projections still take part.
                memory = MemoryBatch(
                    rows=torch.full_like(memory.rows, -1),
                    orders=torch.zeros_like(memory.orders),
                    segments=memory.segments,
                )
            loss = wrapped(input_ids=local, labels=local, memgraft=memory).loss
            loss.backward()
            loss = wrapped(input_ids=local, labels=local).loss
            loss.backward()
            state = {name: p.grad for name, p in model.named_parameters()}
        else:
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            mesh = init_device_mesh("cpu", (world,))
            for block in model.model.layers:
                fully_shard(block, mesh=mesh)
            fully_shard(model, mesh=mesh)
            optimizer = torch.optim.AdamW(optimizer_groups(model, lr=1e-2))
            for _ in range(2):
                optimizer.zero_grad()
                model(input_ids=local, labels=local).loss.backward()
                optimizer.step()
            from memgraft.integrations.transformers import save_graft

            save_graft(model, Path(out) / f"graft{rank}", gather=lambda p: p.full_tensor())
            state = {name: p.full_tensor() for name, p in model.named_parameters()}
        if rank == 0:
            torch.save({name: tensor.detach() for name, tensor in state.items()}, Path(out) / f"{kind}.pt")
    finally:
        dist.destroy_process_group()


def _spawn(kind: str, bank: Any, out: Path) -> dict[str, torch.Tensor]:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.start_processes(_process, args=(2, port, str(bank.path), kind, str(out)), nprocs=2, start_method="spawn")
    loaded: dict[str, torch.Tensor] = torch.load(out / f"{kind}.pt", weights_only=True)
    return loaded


@pytest.mark.slow
def test_ddp(bank: Any, tmp_path: Path) -> None:
    got = _spawn("ddp", bank, tmp_path)
    model = grafted(bank).train()
    ids = prompts(4)
    for rank in range(2):
        local = ids[2 * rank : 2 * rank + 2]
        memory = memory_of(bank, local)
        if rank == 1:
            memory = MemoryBatch(
                rows=torch.full_like(memory.rows, -1),
                orders=torch.zeros_like(memory.orders),
                segments=memory.segments,
            )
        (model(local, labels=local, memgraft=memory).loss / 2).backward()
        (model(local, labels=local).loss / 2).backward()
    assert_same_gradients(got, gradients(model), atol=1e-5)


@pytest.mark.slow
def test_fsdp2(bank: Any, tmp_path: Path) -> None:
    got = _spawn("fsdp2", bank, tmp_path)
    model = grafted(bank).train()
    optimizer = torch.optim.AdamW(optimizer_groups(model, lr=1e-2))
    ids = prompts(4)
    for _ in range(2):
        optimizer.zero_grad()
        for local in ids.split(2):
            (model(local, labels=local).loss / 2).backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            got[name], parameter.detach(), atol=1e-4, rtol=1e-4, msg=lambda t, n=name: f"{n}: {t}"
        )
    from memgraft.integrations.transformers import load_graft

    loaded = load_graft(recipient(), tmp_path / "graft1", bank=bank)
    for site, layer in graft_layers(loaded)["default"].items():
        for name, parameter in layer.named_parameters():
            key = f"model.layers.{site}.memgraft.default.{name}"
            torch.testing.assert_close(parameter.detach(), got[key])
