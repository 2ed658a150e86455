"""Harvest a key set: judge every key's text, run the donor over the kept ones in chunks, seal the bank.

The chunk is the unit of resumption and of sharing work between processes. It is a run of keys in the order of their
donor tokens, and its batches depend on the settings alone: so a harvest that was killed and taken up again, or that
many processes did, writes the same bytes as one that was not.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memgraft.bank import Bank, BankWriter
from memgraft.bank.dtypes import value_dtype
from memgraft.corpus import Corpus
from memgraft.errors import ArgumentError, MemgraftError
from memgraft.harvesting.donor import Donor
from memgraft.harvesting.extras import beside_bank
from memgraft.harvesting.filling import POLL_SECONDS, fill
from memgraft.harvesting.finished import finished_bank, refuse_other
from memgraft.harvesting.occurrences import Contexts
from memgraft.harvesting.plan import HarvestPlan, plan_harvest
from memgraft.harvesting.prefix import PrefixChoice
from memgraft.harvesting.ranks import Rank
from memgraft.harvesting.readers import find_reader, mined_corpus
from memgraft.harvesting.reading import reading_facts, warn_of_collapse
from memgraft.harvesting.selecting import Progress, select_keys, selection_beside
from memgraft.harvesting.setup import set_up
from memgraft.harvesting.speed import Note
from memgraft.harvesting.storage import storage_beside
from memgraft.harvesting.text import RoundTrip
from memgraft.index import NgramIndex
from memgraft.keyset import KeySet
from memgraft.progress import callback
from memgraft.tokenizer import tokenizer_facts

__all__ = ["HarvestPlan", "Note", "harvest", "plan_harvest"]


def harvest(
    keys: KeySet,
    *,
    recipient_tokenizer: Any,
    donor: str | Path | Donor,
    taps: Sequence[int],
    out: str | Path,
    dtype: str = "bf16",
    compute_dtype: str = "auto",
    prefix: PrefixChoice = "auto",
    prepend_bos: bool = False,
    contexts: Contexts | Sequence[int] | None = None,
    corpus: Corpus | None = None,
    round_trip: RoundTrip = "text",
    share_prefixes: bool = True,
    batch_tokens: int = 1024,
    chunk_rows: int = 2048,
    device: str | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    resume: bool = True,
    keep_tokenizer: bool = True,
    progress: Progress | bool | None = None,
    note: Note | None = None,
) -> Bank:
    """Run the donor over the keys and write the bank; several processes may call it for one bank (docs/HARVESTING.md).

    Args:
        keys: what was mined. Keys without a usable text are dropped and counted; the bank holds the others, renumbered.
        recipient_tokenizer: path of ``tokenizer.json`` (or its folder), a ``tokenizers`` or a transformers tokenizer.
        donor: a transformers folder, a ``.gguf`` file, a hub id, or an open `Donor`.
        taps: ascending donor depths; r is the residual stream after r blocks, 0 the embeddings.
        out: the bank directory to be. While it grows it is called ``<out>.partial``.
        dtype: storage type: ``"bf16"``, ``"fp16"``, ``"fp32"``, or 8 bits: ``"fp8_e4m3"`` (a scale for each row) or
            ``"int8"`` (a scale for each channel, from a sample of the keys); what 8 bits cost is in ``donor.storage``.
        compute_dtype: type of the donor's run, see `open_donor`; an open `Donor` keeps its own.
        prefix: donor tokens before every key. ``"auto"`` measures behind which of a few words of one token differ most
            at these taps; ``"none"`` (or None) is the isolated n-gram, ``"bos"`` the donor's BOS; else text or ids.
        prepend_bos: put the donor's BOS first; with the default prefix the same as ``prefix="bos"``.
        contexts: ``(k, L)`` or `Contexts`: the value is the mean over up to k occurrences in ``corpus``, each behind up
            to L tokens of its document; None (or L = 0) reads the key alone.
        corpus: for ``contexts``, what the keys were mined from, or the whole that it was split off; read are documents
            of the mined part alone.
        round_trip: ``"text"`` keeps a key whose text is stable, ``"ids"`` also demands that it encodes to the key.
        share_prefixes: run each distinct beginning of the keys once, where the donor can (it is tried); else every key
            runs alone.
        batch_tokens: padded donor tokens per batch.
        chunk_rows: rows written, and kept at a kill, at a time.
        device: where the donor runs; a CUDA card by default (one for each of several processes), else the CPU.
        rank: this process among ``world_size``; from ``RANK``/``WORLD_SIZE`` or ``SLURM_PROCID``/``SLURM_NTASKS`` by
            default. The bytes do not depend on it. What a killed process leaves, the others do.
        world_size: number of processes that harvest this bank.
        resume: take up ``<out>.partial``, and return a finished ``out`` of the same settings; else both are refused.
        keep_tokenizer: copy the recipient's ``tokenizer.json`` into the bank, where inspecting, explaining and grafting
            find it.
        progress: True for bars, or called as ``progress(stage, done, total)``.
        note: called with lines about what is shared and how fast it goes.

    Returns:
        The bank, in every process: the one that finds all rows written seals it, the others wait for that.

    Raises:
        DonorError: no such donor or tap, it is not complete, or a state is not finite.
        KeySetError: no key is left.
        TokenError: the tokenizer has more tokens than the key set's vocabulary, or a key holds one it does not have.
        ArgumentError: options out of range; contexts without a corpus.
        FingerprintError: ``out`` or its partial is of other settings, or the keys are of another tokenizer or corpus.
        StorageError: the disk refused, or the rank is running already.
    """
    progress = callback(progress)
    value_dtype(dtype)
    if round_trip not in ("text", "ids"):
        raise ArgumentError(f'round_trip: expected "text" or "ids", found {round_trip!r}')
    if batch_tokens < 1 or chunk_rows < 1:
        raise ArgumentError(f"batch_tokens {batch_tokens}, chunk_rows {chunk_rows}: expected at least 1")
    place, out = Rank.find(rank, world_size), Path(out)
    around = Contexts.of(contexts)
    mined = mined_corpus(keys, around, corpus)
    partial = out.with_name(out.name + ".partial")
    if not resume and place.world_size > 1:
        raise ArgumentError("resume=False: several processes take up what one of them began; leave it on")
    if not resume and (out.exists() or partial.exists()):
        raise ArgumentError(f"{out}: exists, or its .partial does; remove it, or harvest with resume=True")
    if out.exists():
        refuse_other(out, {"dtype": dtype, "taps": tuple(taps)})
    setup = set_up(
        keys,
        recipient_tokenizer,
        donor,
        taps,
        compute_dtype,
        place.device(device),
        prefix,
        prepend_bos,
        round_trip,
        recorded=_recorded(out),
        progress=progress,
    )
    how = {
        **setup.prefix.facts(),
        **({"contexts": None} if around is None or mined is None else around.facts(mined)),
        "mined": keys.fingerprint,
        "round_trip": round_trip,
        "batch_tokens": batch_tokens,
        "chunk_rows": chunk_rows,
    }
    facts = {**setup.donor.facts(), **how}
    tokenizer = tokenizer_facts(setup.recipient, keys.vocab_size)
    tokenizer["file_fingerprint"] = tokenizer["file_fingerprint"] or keys.metadata.get("tokenizer")
    if out.exists():
        return finished_bank(out, keys, setup, dtype, facts)
    selection = selection_beside(
        partial,
        {"mined": keys.fingerprint, "round_trip": round_trip, "recipient": tokenizer["fingerprint"]}
        | {"donor": setup.donor.tokenizer.fingerprint},
        lambda: select_keys(keys, setup.recipient, setup.donor.tokenizer, round_trip, progress),
    )
    reader = find_reader(
        setup,
        selection,
        contexts=around,
        corpus=mined,
        share=share_prefixes,
        batch_tokens=batch_tokens,
        recorded=_recorded(out),
        partial=partial,
        progress=progress,
    )
    facts |= reader.facts
    if note is not None:
        where = next(setup.donor.model.parameters()).device
        note(f"donor {setup.donor.name} runs on {where} in {setup.donor.compute_dtype}")
        note(reader.describe())
    storage = storage_beside(
        partial,
        value_dtype(dtype),
        len(selection.kept),
        {**facts, "dtype": dtype, "taps": list(setup.taps)},
        reader.values,
    )
    if storage.facts:
        facts["storage"] = storage.facts
    try:
        writer = BankWriter(
            out,
            keys=selection.kept,
            taps=setup.taps,
            value_dim=setup.donor.value_dim,
            dtype=dtype,
            donor=facts,
            tokenizer=tokenizer,
            scales=storage.scales,
            order=reader.order,
            rank=place.rank,
            world_size=place.world_size,
        )
    except MemgraftError:
        if out.exists():  # another process has sealed it meanwhile
            return finished_bank(out, keys, setup, dtype, facts)
        raise
    with writer:
        fill(writer, setup, selection, reader, dtype, chunk_rows, progress, note)
        while not (out / "bank.json").exists():
            if writer.try_seal():
                index = NgramIndex.build(selection.kept)
                files = beside_bank(keys, index, setup, recipient_tokenizer, keep_tokenizer=keep_tokenizer)
                bank = writer.finish(
                    index=index,
                    dropped=selection.dropped,
                    donor=reading_facts(selection, alone=around is None),
                    files=files,
                )
                warn_of_collapse(bank)
                return bank
            time.sleep(POLL_SECONDS)
    return Bank.open(out)


def _recorded(out: Path) -> Mapping[str, Any]:
    """Donor facts of the finished or unfinished bank at ``out``; empty where there is none or it cannot be read."""
    for path in (out / "bank.json", out.with_name(out.name + ".partial") / "state.json"):
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))["donor"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # who opens or resumes it says what is wrong
        return facts if isinstance(facts, dict) else {}
    return {}
