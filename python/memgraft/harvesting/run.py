"""Harvest a key set: judge every key's text, run the donor over the kept ones in chunks, seal the bank.

The chunk is the unit of resumption and of sharing work between processes. It is a run of keys in the order of their
donor tokens, and its batches depend on the settings alone: so a harvest that was killed and taken up again, or that
many processes did, writes the same bytes as one that was not.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from memgraft.bank import Bank, BankWriter
from memgraft.bank.dtypes import value_dtype
from memgraft.data.dtypes import stored_array
from memgraft.errors import ArgumentError, DonorError, MemgraftError
from memgraft.harvesting.donor import Donor
from memgraft.harvesting.extras import beside_bank
from memgraft.harvesting.finished import finished_bank, refuse_other
from memgraft.harvesting.forward import donor_values
from memgraft.harvesting.packing import IntArray
from memgraft.harvesting.prefix import Prefix, PrefixChoice
from memgraft.harvesting.ranks import Rank
from memgraft.harvesting.reading import reading_facts, warn_of_collapse
from memgraft.harvesting.selecting import Progress, Selection, keys_text, select_keys, selection_beside
from memgraft.harvesting.setup import Setup, set_up
from memgraft.harvesting.sharing import Sharing, find_sharing
from memgraft.harvesting.storage import storage_beside
from memgraft.harvesting.text import RoundTrip
from memgraft.index import NgramIndex
from memgraft.keyset import KeySet
from memgraft.progress import callback
from memgraft.tokenizer import tokenizer_facts

Note = Callable[[str], None]
"""Called with a line for the person who watches."""

_NOTE_SECONDS, _POLL_SECONDS = 30.0, 0.1


@dataclass(frozen=True, kw_only=True)
class HarvestPlan:
    """What a harvest would do, before it is done."""

    num_keys: int
    num_rows: int
    """Keys that would be kept."""
    dropped: dict[str, int]
    taps: tuple[int, ...]
    value_dim: int
    num_bytes: int
    """Bytes of the values."""
    keys_per_second: float
    """Measured on a sample from the middle of the key set."""
    prefix: Prefix | None = None
    """What would stand before every key."""
    num_donor_tokens: int = 0
    """Donor tokens of all keys."""
    num_prefixes: int = 0
    """Distinct beginnings of them."""
    sharing: Sharing | None = None
    """Whether each of these would run once."""

    @property
    def seconds(self) -> float:
        """Expected time of the donor run."""
        return self.num_rows / self.keys_per_second if self.keys_per_second else 0.0


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
        FingerprintError: ``out`` or its partial is of other settings, or the keys are of another tokenizer.
        StorageError: the disk refused, or the rank is running already.
    """
    progress = callback(progress)
    value_dtype(dtype)
    if round_trip not in ("text", "ids"):
        raise ArgumentError(f'round_trip: expected "text" or "ids", found {round_trip!r}')
    if batch_tokens < 1 or chunk_rows < 1:
        raise ArgumentError(f"batch_tokens {batch_tokens}, chunk_rows {chunk_rows}: expected at least 1")
    place, out = Rank.find(rank, world_size), Path(out)
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
    sharing = _sharing(setup, selection, share_prefixes, _recorded(out))
    facts |= {"shared_prefixes": sharing.shared, **_counts(selection, setup.prefix)}
    if note is not None:
        where = next(setup.donor.model.parameters()).device
        note(f"donor {setup.donor.name} runs on {where} in {setup.donor.compute_dtype}")
        note(_describe(facts, sharing))
    storage = storage_beside(
        partial,
        value_dtype(dtype),
        len(selection.kept),
        {**facts, "dtype": dtype, "taps": list(setup.taps)},
        lambda rows: _values(setup, selection, rows, sharing, batch_tokens),
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
            order=selection.order,
            rank=place.rank,
            world_size=place.world_size,
        )
    except MemgraftError:
        if out.exists():  # another process has sealed it meanwhile
            return finished_bank(out, keys, setup, dtype, facts)
        raise
    with writer:
        _fill(writer, setup, selection, sharing, dtype, batch_tokens, chunk_rows, progress, note)
        while not (out / "bank.json").exists():
            if writer.try_seal():
                index = NgramIndex.build(selection.kept)
                files = beside_bank(keys, index, setup, recipient_tokenizer, keep_tokenizer=keep_tokenizer)
                bank = writer.finish(
                    index=index, dropped=selection.dropped, donor=reading_facts(selection), files=files
                )
                warn_of_collapse(bank)
                return bank
            time.sleep(_POLL_SECONDS)
    return Bank.open(out)


def _fill(
    writer: BankWriter,
    setup: Setup,
    selection: Selection,
    sharing: Sharing,
    dtype: str,
    batch_tokens: int,
    chunk_rows: int,
    progress: Progress | None,
    note: Note | None,
) -> None:
    """Computes and writes chunks until none is left, here or in another process."""
    speed = _Speed(writer.num_done, writer.num_rows, note)
    if progress is not None:
        progress("donor", writer.num_done, writer.num_rows)
    with ThreadPoolExecutor(1, "memgraft-write") as thread:
        writing: tuple[int, Future[None]] | None = None

        def end_writing() -> None:
            nonlocal writing
            if writing is not None:
                start, future = writing
                writing = None
                future.result()
                writer.give_back(start)
                speed.tell(writer.num_done)
                if progress is not None:
                    progress("donor", writer.num_done, writer.num_rows)

        # The disk takes a chunk while the donor computes the next one.
        for start, stop in _chunks(writer, chunk_rows, end_writing):
            rows = np.asarray(selection.order[start:stop])
            values = _values(setup, selection, rows, sharing, batch_tokens)
            _refuse_strange(setup, selection, rows, values)
            speed.count(int(selection.tokens.lengths[rows].sum()))
            end_writing()
            writing = start, thread.submit(writer.write, start, stored_array(values, value_dtype(dtype)))
        end_writing()


def _chunks(writer: BankWriter, chunk_rows: int, end_writing: Callable[[], None]) -> Iterator[tuple[int, int]]:
    """Chunks that this writer has claimed: its own share of the order first, then what others have left."""
    num_rows = writer.num_rows
    number = -(-num_rows // chunk_rows)
    first = number * writer.rank // writer.world_size
    left = [*range(first, number), *range(first)]
    while left:
        missing = {start // chunk_rows for a, b in writer.missing() for start in range(a, b, chunk_rows)}
        left = [chunk for chunk in left if chunk in missing]
        got_any = False
        for chunk in left:
            start, stop = chunk * chunk_rows, min((chunk + 1) * chunk_rows, num_rows)
            if writer.claim(start, stop):
                got_any = True
                yield start, stop
        end_writing()
        if left and not got_any:
            # Others are at the rest; should they die, their claims are free.
            time.sleep(_POLL_SECONDS)
            writer.refresh()


def _values(setup: Setup, selection: Selection, rows: IntArray, sharing: Sharing, batch_tokens: int) -> torch.Tensor:
    """Donor states of ``rows``: (n, K, V)."""
    tokens = selection.tokens.take(rows).headed(setup.prefix.ids)
    return donor_values(setup.donor, setup.taps, tokens, max_tokens=batch_tokens, shared=sharing.shared)


def _refuse_strange(setup: Setup, selection: Selection, rows: IntArray, values: torch.Tensor) -> None:
    finite = torch.isfinite(values).flatten(1).all(1).numpy()
    if not finite.all():
        strange, donor = np.sort(rows[~finite]).tolist(), setup.donor
        raise DonorError(
            f"donor {donor.name}: states of {len(strange)} keys are not finite in {donor.compute_dtype} "
            f"({keys_text(selection, strange, setup.recipient)}); run it in another compute dtype, such as "
            "float32, or take a lower tap; what was finished before is kept"
        )


def _sharing(setup: Setup, selection: Selection, asked: bool, recorded: Mapping[str, Any]) -> Sharing:
    """Whether prefixes are shared: what the harvest that is taken up found, else what is found now."""
    if not asked:
        return Sharing(shared=False, reason="share_prefixes is off")
    before = recorded.get("shared_prefixes")
    if isinstance(before, bool) and recorded.get("fingerprint") == setup.donor.fingerprint:
        return Sharing(shared=before, reason="as the harvest began")
    return find_sharing(setup.donor, setup.taps, selection.tokens, setup.prefix.ids)


def _counts(selection: Selection, prefix: Prefix) -> dict[str, int]:
    """Donor tokens of all keys, each behind the prefix, and the distinct beginnings among them."""
    num_tokens = len(selection.tokens.tokens) + len(prefix.ids) * len(selection.tokens)
    return {"num_donor_tokens": num_tokens, "num_prefixes": selection.num_prefixes + len(prefix.ids)}


def _describe(facts: Mapping[str, Any], sharing: Sharing) -> str:
    tokens, prefixes = facts["num_donor_tokens"], facts["num_prefixes"]
    text = f"{tokens:,} donor tokens in all keys, {prefixes:,} distinct prefixes ({tokens / prefixes:.2f} to one"
    if sharing.shared:
        return f"{text}): each prefix runs once, {1 - prefixes / tokens:.0%} of the tokens are reused; {sharing.reason}"
    return f"{text}): every key runs alone, since {sharing.reason}"


class _Speed:
    """Tells now and then how fast it goes and how long it will take."""

    def __init__(self, done: int, total: int, note: Note | None) -> None:
        self._begun = self._told = time.monotonic()
        self._done, self._total, self._note = done, total, note
        self._tokens = 0

    def count(self, tokens: int) -> None:
        """Adds the donor tokens of a chunk of this process."""
        self._tokens += tokens

    def tell(self, done: int) -> None:
        """Says so, where some time has passed or all is done; ``done`` counts the keys of all processes."""
        now = time.monotonic()
        if self._note is None or (now - self._told < _NOTE_SECONDS and done < self._total):
            return
        self._told, seconds = now, max(now - self._begun, 1e-9)
        rate = (done - self._done) / seconds
        left = f"{(self._total - done) / rate:,.0f} s left" if rate and done < self._total else f"in {seconds:,.0f} s"
        tokens = self._tokens / seconds
        self._note(f"donor: {done:,} of {self._total:,} keys, {rate:,.0f} keys/s, {tokens:,.0f} donor tokens/s, {left}")


def plan_harvest(
    keys: KeySet,
    *,
    recipient_tokenizer: Any,
    donor: str | Path | Donor,
    taps: Sequence[int],
    dtype: str = "bf16",
    compute_dtype: str = "auto",
    prefix: PrefixChoice = "auto",
    prepend_bos: bool = False,
    round_trip: RoundTrip = "text",
    share_prefixes: bool = True,
    batch_tokens: int = 1024,
    device: str | None = None,
    progress: Progress | bool | None = None,
) -> HarvestPlan:
    """Judge every key and time the donor on a sample; write nothing. Arguments and errors as for `harvest`."""
    progress = callback(progress)
    storage = value_dtype(dtype)
    setup = set_up(keys, recipient_tokenizer, donor, taps, compute_dtype, device, prefix, prepend_bos, round_trip)
    selection = select_keys(keys, setup.recipient, setup.donor.tokenizer, round_trip, progress)
    sharing = _sharing(setup, selection, share_prefixes, {})
    sample = min(2048, len(selection.kept))
    middle = max(0, (len(selection.kept) - sample) // 2)
    rows = selection.order[middle : middle + sample]
    _values(setup, selection, rows[:64], sharing, batch_tokens)  # warm-up
    started = time.perf_counter()
    _values(setup, selection, rows, sharing, batch_tokens)
    rate = sample / (time.perf_counter() - started)
    counts = _counts(selection, setup.prefix)
    return HarvestPlan(
        num_keys=len(keys),
        num_rows=len(selection.kept),
        dropped=selection.dropped,
        taps=setup.taps,
        value_dim=setup.donor.value_dim,
        num_bytes=len(selection.kept) * len(setup.taps) * setup.donor.value_dim * storage.size,
        keys_per_second=rate,
        prefix=setup.prefix,
        num_donor_tokens=counts["num_donor_tokens"],
        num_prefixes=counts["num_prefixes"],
        sharing=sharing,
    )


def _recorded(out: Path) -> Mapping[str, Any]:
    """Donor facts of the finished or unfinished bank at ``out``; empty where there is none or it cannot be read."""
    for path in (out / "bank.json", out.with_name(out.name + ".partial") / "state.json"):
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))["donor"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # who opens or resumes it says what is wrong
        return facts if isinstance(facts, dict) else {}
    return {}
