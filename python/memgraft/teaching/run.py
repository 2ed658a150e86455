"""Statements to an overlay: keys, the donor's states, training, what it does; dropping the overlay undoes it."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from memgraft.arguments import refuse_paths
from memgraft.bank import Bank, BankWriter, Memory
from memgraft.bank.dtypes import value_dtype
from memgraft.bank.extras import tokenizer_files
from memgraft.bank.files import write_text
from memgraft.bank.stacked import StackedIndex
from memgraft.corpus import Corpus
from memgraft.corpus.writer import CorpusWriter
from memgraft.errors import ArgumentError, FingerprintError, GraftError
from memgraft.harvesting.donor import Donor
from memgraft.harvesting.extend import harvest_like
from memgraft.index import NgramIndex
from memgraft.integrations.transformers.families import find_decoder, text_config, unwrap
from memgraft.integrations.transformers.memories import check_space
from memgraft.integrations.transformers.runtime import GraftRuntime, the_runtime
from memgraft.keysets import rows_in
from memgraft.progress import Progress, callback
from memgraft.system import sync_folder
from memgraft.teaching.facts import Fact, Spoken, checked, spoken
from memgraft.teaching.keys import Chosen, choose_keys
from memgraft.teaching.measure import damage, recall
from memgraft.teaching.reading import Grafted, NeutralWindows, SlotReader, neutral_windows
from memgraft.teaching.settings import TeachSettings
from memgraft.teaching.training import State, improve
from memgraft.tokenizer import differs_from, facts_of_keys, open_tokenizer, refuse_other_tokens

REPORT_NAME = "teaching.json"
_MOST_LISTED = 50


@dataclass(frozen=True)
class Taught:
    """What `teach` gives back.

    Attributes:
        overlay: the new bank.
        report: what was measured, as in the overlay's ``teaching.json``.
        paths: the base's folders and the overlay's; ``Bank.open(paths)`` is the memory with the new rows.
    """

    overlay: Bank
    report: dict[str, Any]
    paths: tuple[Path, ...]


def teach(
    recipient: nn.Module,
    facts: Iterable[Fact],
    *,
    out: str | Path,
    donor: str | Path | Donor,
    neutral: Corpus,
    settings: TeachSettings | None = None,
    bank: Bank | None = None,
    tokenizer: Any = None,
    name: str | None = None,
    source: str = "facts",
    device: str | None = None,
    progress: Progress | bool | None = None,
) -> Taught:
    """Writes an overlay whose rows make the model complete each prompt as its fact says.

    Recipient and graft stay as they are; new rows alone are trained. They begin as the donor's states of the keys, read
    with the settings that the base bank was harvested with. While it works, ``<out>.teaching`` holds the donor's rows
    and the state of the training; the same call goes on from there, and gives the same bytes as one that ran through.

    Args:
        recipient: the grafted model.
        facts: what to teach.
        out: the overlay to be, a bank directory.
        donor: the donor that the base bank was harvested from.
        neutral: text that must not change: keys are checked against it, and damage is measured on it.
        settings: how; `TeachSettings` has the defaults.
        bank: the base, or a stack; the graft's own memory by default.
        tokenizer: the recipient's; the one that the bank holds by default.
        name: the graft, if there are several.
        source: what the facts were read from, which the overlay records.
        device: where the donor runs.
        progress: True for bars, or called with (phase, done, total).

    Raises:
        ArgumentError: ``out`` exists, no fact, facts that contradict each other, a prompt longer than the recipient.
        FingerprintError: the bank is of another value space or tokenizer, the donor is another one, or
            ``<out>.teaching`` is of other facts or settings.
        GraftError: no such graft, one that reads no bank, or one that was never trained and writes nothing.
        DonorError, KeySetError, StorageError: as for `memgraft.harvest`.
    """
    refuse_paths(neutral=neutral, bank=bank)
    progress, settings, out = callback(progress), settings or TeachSettings(), Path(out)
    if out.exists():
        raise ArgumentError(f"{out}: exists; name another --out, or remove it")
    listed = checked(facts)
    model = unwrap(recipient)
    decoder, _ = find_decoder(model)
    runtime = the_runtime(decoder, name)
    base = _base(runtime, bank)
    codec = open_tokenizer(tokenizer if tokenizer is not None else _own_tokenizer(base))
    if difference := differs_from(codec, base.manifest.tokenizer):
        raise FingerprintError(f"tokenizer: not the one of the bank's keys: {difference}; give the recipient's own")
    refuse_other_tokens(facts_of_keys(base.keys.metadata, base.manifest.tokenizer), neutral)
    prompts, reworded = _spoken(listed, codec, getattr(text_config(model), "max_position_embeddings", None))
    kept = ("tokenizer", "tokenizer_mapping")
    named: dict[str, Any] = {key: fact for key, fact in base.keys.metadata.items() if key in kept}
    chosen = choose_keys(
        prompts,
        neutral,
        min_order=settings.min_order,
        base_order=base.max_order,
        neutral_tokens=settings.neutral_tokens,
        vocab_size=base.vocab_size,
        reserved=base.keys.reserved,
        metadata={**named, "taught": {"source": source, "fingerprint": _hash_of(listed)}},
    )
    work = _work_folder(out, listed, settings, base, model, chosen, neutral)
    own = tokenizer if tokenizer is not None else base.tokenizer_path
    harvested = _harvested(work, base, chosen, prompts, own, donor, device, progress)
    grafted = Grafted(model, runtime.name, tuple(runtime.eos_ids), next(model.parameters()).device)
    index = NgramIndex.build(chosen.keys)
    windows = neutral_windows(
        neutral, index, settings.window, settings.neutral_windows, settings.neutral_tokens, settings.seed
    )
    layers = base.index.layers if isinstance(base.index, StackedIndex) else (base.index,)
    reader = SlotReader(base, StackedIndex([*layers, index]), chosen.slots)
    training, start = model.training, _first_values(harvested, chosen, base)
    model.eval()
    try:
        values, state = improve(
            grafted, base, reader, start, prompts, windows.matched, settings, work / "state.safetensors", progress
        )
        # What an interrupted call left is written again, to the same bytes.
        shutil.rmtree(work / "overlay", ignore_errors=True)
        written = work / "overlay"
        overlay = _write(written, base, harvested, chosen, values[chosen.slots], listed, source, settings, state)
        arms = {"base": base, "donor": Bank.open([base.paths, harvested.path])}
        report = _report(grafted, {**arms, "taught": Bank.open([base.paths, overlay.path])}, prompts, reworded, windows)
    finally:
        model.train(training)
    report = {**_facts(listed, chosen, harvested, overlay, base, state, settings, source, codec), **report}
    write_text(written / REPORT_NAME, json.dumps(report, indent=2) + "\n")
    # The last step: a folder of that name is an overlay with its report.
    os.replace(written, out)
    sync_folder(out.absolute().parent)
    shutil.rmtree(work, ignore_errors=True)
    return Taught(Bank.open(out), report, (*base.paths, out))


def _base(runtime: GraftRuntime, bank: Bank | None) -> Bank:
    """The memory that is grown, checked against the graft."""
    if runtime.off or runtime.controlled is not None or runtime.config.row_source != "bank":
        raise GraftError(
            f"the graft {runtime.name!r} reads no bank under control={runtime.config.control!r}: rows cannot teach it"
        )
    base: Memory = runtime.bank if bank is None else bank
    if not isinstance(base, Bank):
        raise ArgumentError(f"bank: expected an open memgraft.Bank, found {type(base).__name__}")
    if base is not runtime.bank:
        check_space(runtime.bank, base)
    return base


def _own_tokenizer(base: Bank) -> Path:
    if base.tokenizer_path is None:
        raise ArgumentError(f"{base.path}: expected a tokenizer.json in it, found none; give the recipient's tokenizer")
    return base.tokenizer_path


def _spoken(facts: Sequence[Fact], codec: Any, longest: int | None) -> tuple[list[Spoken], list[Spoken]]:
    """Prompts and reworded prompts in tokens."""
    asked = [(number, fact.prompt, fact.completion) for number, fact in enumerate(facts)]
    other = [(number, words, fact.completion) for number, fact in enumerate(facts) for words in fact.reworded]
    return spoken(asked, codec, longest, "prompt"), spoken(other, codec, longest, "reworded prompt")


def _hash_of(facts: Sequence[Fact]) -> str:
    text = json.dumps([fact.facts() for fact in facts], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _work_folder(
    out: Path,
    facts: Sequence[Fact],
    settings: TeachSettings,
    base: Bank,
    model: nn.Module,
    chosen: Chosen,
    neutral: Corpus,
) -> Path:
    """``<out>.teaching``, made or taken up.

    Raises:
        FingerprintError: it is of something else.
    """
    work = out.with_name(out.name + ".teaching")
    # What changes the rows; how long to train and where to stop may be changed, the training goes on from where it is.
    these = {name: value for name, value in asdict(settings).items() if name not in ("steps", "target")}
    now = {
        "facts": _hash_of(facts),
        "bank": base.fingerprint,
        "model": _weights(model),
        "keys": chosen.keys.fingerprint,
        "neutral": neutral.fingerprint,
        **these,
    }
    path = work / "settings.json"
    if path.exists():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            found = {}
        if differing := [name for name in now if found.get(name) != now[name]]:
            raise FingerprintError(
                f"{work}: holds an unfinished teaching of other {', '.join(differing)}; repeat it with what it was "
                "begun with, remove that folder, or name another path"
            )
        return work
    work.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(now, indent=2) + "\n")
    return work


def _weights(model: nn.Module) -> str:
    """A hash of the model's weights, the graft's among them."""
    hasher = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        hasher.update(name.encode())
        hasher.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def _harvested(
    work: Path,
    base: Bank,
    chosen: Chosen,
    statements: Sequence[Spoken],
    tokenizer: Any,
    donor: str | Path | Donor,
    device: str | None,
    progress: Progress | None,
) -> Bank:
    """The donor's states of the keys, as an overlay of its own: the baseline without training."""
    if (work / "donor" / "bank.json").exists():
        return Bank.open(work / "donor")
    corpus = None
    if base.manifest.donor.get("contexts"):
        # The base's values are means over places in its corpus; the facts are the text that these keys stand in.
        with CorpusWriter(work / "facts", vocab_size=base.vocab_size, declared=False) as writer:
            for statement in statements:
                writer.add(np.array(statement.ids, np.int64))
            writer.finish()
        corpus = Corpus.open(work / "facts.bin")
    return harvest_like(
        base,
        chosen.keys,
        recipient_tokenizer=tokenizer,
        donor=donor,
        out=work / "donor",
        corpus=corpus,
        device=device,
        warn=False,  # they are trained next, in a folder that is gone then
        progress=progress,
    )


def _first_values(harvested: Bank, chosen: Chosen, base: Bank) -> np.ndarray:
    """The donor's state of each place's longest key; of a shorter one where that has none, else their mean."""
    rows = rows_in(chosen.keys, harvested.index)
    states = harvested.floats(np.arange(harvested.num_rows, dtype=np.int32))
    start = np.broadcast_to(states.mean(0), (chosen.num_slots, *states.shape[1:])).astype(np.float32)
    lengths = np.diff(chosen.keys.arrays().offsets.astype(np.int64))
    for number in np.argsort(lengths, kind="stable"):  # the longest last, so that it stays
        if rows[number] >= 0:
            start[chosen.slots[number]] = states[rows[number]]
    return start


def _write(
    out: Path,
    base: Bank,
    harvested: Bank,
    chosen: Chosen,
    values: np.ndarray,
    facts: Sequence[Fact],
    source: str,
    settings: TeachSettings,
    state: State,
) -> Bank:
    """The overlay, in the base's storage type."""
    taught = {"source": source, "fingerprint": _hash_of(facts), "facts": len(facts), "steps": state.step}
    writer = BankWriter(
        out,
        keys=chosen.keys,
        taps=base.taps,
        value_dim=base.value_dim,
        dtype=harvested.dtype,
        donor={**harvested.manifest.donor, "taught": {**taught, **asdict(settings)}},
        tokenizer=harvested.manifest.tokenizer,
        scales=harvested.scales(np.zeros(0, np.int32)) if value_dtype(harvested.dtype).scales == "channel" else None,
    )
    with writer:
        writer.write(0, values)
        return writer.finish(corpus={"taught": taught}, files=tokenizer_files(base.paths))


def _report(
    grafted: Grafted,
    memories: dict[str, Bank],
    prompts: Sequence[Spoken],
    reworded: Sequence[Spoken],
    windows: NeutralWindows,
) -> dict[str, Any]:
    """Recall and damage of each memory, and of the model without any graft."""
    arms: dict[str, Bank | None] = {"off": None, **memories}
    told = {
        arm: {"prompts": recall(grafted, memory, prompts), "reworded": recall(grafted, memory, reworded)}
        for arm, memory in arms.items()
    }
    base = memories["base"]
    hurt = {
        arm: {
            "matched": damage(grafted, base, memory, windows.matched),
            "other": damage(grafted, base, memory, windows.plain),
        }
        for arm, memory in memories.items()
        if arm != "base"
    }
    return {"recall": told, "neutral": {"windows_with_matches": windows.num_matched, **hurt}}


def _facts(
    facts: Sequence[Fact],
    chosen: Chosen,
    harvested: Bank,
    overlay: Bank,
    base: Bank,
    state: State,
    settings: TeachSettings,
    source: str,
    codec: Any,
) -> dict[str, Any]:
    """What was taught, with which rows."""
    hits = sorted(chosen.neutral_hits.items(), key=lambda item: (-item[1], item[0]))[:_MOST_LISTED]
    return {
        "source": source,
        "facts": len(facts),
        "places": chosen.num_slots,
        "rows": overlay.num_rows,
        "rows_by_order": overlay.keys.num_keys_by_order,
        "without_donor_state": dict(harvested.manifest.dropped),
        "base": base.fingerprint,
        "space": overlay.space,
        "fingerprint": overlay.fingerprint,
        "steps": state.step,
        "target_reached": bool((state.worst >= math.log(settings.target)).all()),
        "losses": state.losses,
        "settings": asdict(settings),
        "neutral_tokens_checked": chosen.neutral_tokens,
        "keys_in_neutral_text": [
            {"key": codec.decode_inside([key])[0], "order": len(key), "hits": num} for key, num in hits
        ],
    }
