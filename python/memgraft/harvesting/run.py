"""Harvest a key set: judge every key's text, run the donor over the kept ones in chunks, seal the bank.

The chunk is the unit of resumption and of sharing work between processes. It is a run of keys in the order of their
donor tokens, and its batches depend on the settings alone: so a harvest that was killed and taken up again, or that
many processes did, writes the same bytes as one that was not.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memgraft.arguments import refuse_paths
from memgraft.bank import Bank
from memgraft.corpus import Corpus
from memgraft.errors import ArgumentError, MemgraftError
from memgraft.harvesting.causal import input_device
from memgraft.harvesting.donor import Donor
from memgraft.harvesting.filling import POLL_SECONDS, fill
from memgraft.harvesting.job import Job, partial_of, prepare
from memgraft.harvesting.memory import WORKING_MEMORY
from memgraft.harvesting.occurrences import Contexts
from memgraft.harvesting.plan import HarvestPlan, plan_harvest
from memgraft.harvesting.prefix import PrefixChoice
from memgraft.harvesting.ranks import Rank
from memgraft.harvesting.reading import warn_of_health
from memgraft.harvesting.selecting import Progress
from memgraft.harvesting.speed import Note
from memgraft.harvesting.text import RoundTrip
from memgraft.keyset import KeySet
from memgraft.progress import callback

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
    probe: Mapping[str, Any] | None = None,
    round_trip: RoundTrip = "text",
    share_prefixes: bool = True,
    batch_tokens: int = 1024,
    chunk_rows: int = 2048,
    device: str | None = None,
    memory: int | str = WORKING_MEMORY,
    rank: int | None = None,
    world_size: int | None = None,
    resume: bool = True,
    keep_tokenizer: bool = True,
    warn: bool = True,
    progress: Progress | bool | None = None,
    note: Note | None = None,
) -> Bank:
    """Runs the donor over the keys and writes the bank; several processes may do it together (docs/HARVESTING.md).

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
        probe: the table of the probe that chose taps, prefix and contexts (`memgraft.probing.choose_settings`), which
            the bank records.
        round_trip: ``"text"`` keeps a key whose text is stable, ``"ids"`` also demands that it encodes to the key.
        share_prefixes: run each distinct beginning of the keys once, where the donor can (it is tried); else every key
            runs alone.
        batch_tokens: padded donor tokens per batch.
        chunk_rows: rows written, and kept at a kill, at a time.
        device: where the donor runs; a CUDA card by default (one for each of several processes), else the CPU.
        memory: working memory of judging and sorting keys and of searching the corpus, such as ``"2GiB"`` or a number
            of bytes; the bytes of the bank do not depend on it. What comes besides is in `HarvestPlan.memory`.
        rank: this process among ``world_size``; from ``RANK``/``WORLD_SIZE`` or ``SLURM_PROCID``/``SLURM_NTASKS`` by
            default. The bytes do not depend on it. What a killed process leaves, the others do.
        world_size: number of processes that harvest this bank.
        resume: take up ``<out>.partial``, and return a finished ``out`` of the same settings; else both are refused.
        keep_tokenizer: copy the recipient's ``tokenizer.json`` into the bank, where inspecting, explaining and grafting
            find it.
        warn: tell what of the bank's health a person should look at.
        progress: True for bars, or called as ``progress(phase, done, total)``.
        note: called with lines about what is shared and how fast it goes.

    What ``warn`` tells goes to the log ``memgraft``, rows that are nearly one value to Python's warnings.

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
    refuse_paths(keys=keys, corpus=corpus)
    place, out = Rank.find(rank, world_size), Path(out)
    if not resume and place.world_size > 1:
        raise ArgumentError("resume=False: several processes take up what one of them began; leave it on")
    if not resume and (out.exists() or partial_of(out).exists()):
        raise ArgumentError(f"{out}: exists, or its .partial does; remove it, or harvest with resume=True")
    progress = callback(progress)
    job = prepare(
        keys,
        recipient_tokenizer=recipient_tokenizer,
        donor=donor,
        taps=taps,
        out=out,
        dtype=dtype,
        compute_dtype=compute_dtype,
        prefix=prefix,
        prepend_bos=prepend_bos,
        contexts=contexts,
        corpus=corpus,
        probe=probe,
        round_trip=round_trip,
        share_prefixes=share_prefixes,
        batch_tokens=batch_tokens,
        chunk_rows=chunk_rows,
        device=place.device(device),
        memory=memory,
        share=(place.rank, place.world_size),
        progress=progress,
    )
    bank = job if isinstance(job, Bank) else _made(job, place, recipient_tokenizer, keep_tokenizer, progress, note)
    if warn and place.rank == 0:
        warn_of_health(bank)
    return bank


def _made(
    job: Job, place: Rank, recipient_tokenizer: Any, keep_tokenizer: bool, progress: Progress | None, note: Note | None
) -> Bank:
    """Runs the donor until all rows are written, here or in other processes."""
    if note is not None:
        where = input_device(job.setup.donor.model)
        note(f"the donor {job.setup.donor.name} runs on {where} in {job.setup.donor.compute_dtype}")
        note(job.reader.describe())
    try:
        writer = job.writer(place.rank, place.world_size)
    except MemgraftError:
        if job.out.exists():  # another process has sealed it meanwhile
            return job.finished()
        raise
    with writer:
        fill(job, writer, progress, note)
        while not (job.out / "bank.json").exists():
            if writer.try_seal():
                return job.seal(writer, recipient_tokenizer, keep_tokenizer=keep_tokenizer)
            time.sleep(POLL_SECONDS)
    return Bank.open(job.out)
