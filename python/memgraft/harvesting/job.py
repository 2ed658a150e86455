"""One harvest as every process sees it: what is read in which order, how it is stored, and what the bank will say."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from memgraft.bank import Bank, BankWriter
from memgraft.bank.dtypes import AnyArray, value_dtype
from memgraft.bank.files import write_text
from memgraft.corpus import Corpus
from memgraft.data.dtypes import stored_array
from memgraft.errors import DonorError
from memgraft.harvesting.asked import check_asked
from memgraft.harvesting.donor import Donor
from memgraft.harvesting.extras import beside_bank
from memgraft.harvesting.finished import facts_at, finished_bank, refuse_other
from memgraft.harvesting.judging import Judge
from memgraft.harvesting.memory import WORKING_MEMORY, working_memory
from memgraft.harvesting.occurrences import Contexts
from memgraft.harvesting.packing import IntArray
from memgraft.harvesting.prefix import PrefixChoice
from memgraft.harvesting.readers import Reader, find_reader, mined_corpus
from memgraft.harvesting.reading import reading_facts
from memgraft.harvesting.selecting import Progress, Selection, keys_text, selection_beside
from memgraft.harvesting.setup import Setup, set_up
from memgraft.harvesting.storage import Storage, storage_beside
from memgraft.harvesting.text import RoundTrip
from memgraft.index import NgramIndex
from memgraft.keyset import KeySet
from memgraft.tokenizer import tokenizer_facts


@dataclass(frozen=True, kw_only=True)
class Job:
    """A harvest that is ready to run; chunk ``i`` is rows ``order[i * chunk_rows : (i + 1) * chunk_rows]``."""

    keys: KeySet
    out: Path
    setup: Setup
    selection: Selection
    reader: Reader
    storage: Storage
    dtype: str
    chunk_rows: int
    facts: dict[str, Any]
    """What ``bank.json`` says of the donor."""
    tokenizer: dict[str, Any]
    """What it says of the recipient's tokenizer."""

    @property
    def bank_facts(self) -> dict[str, Any]:
        """What a `BankWriter` of this bank is given besides keys and order."""
        return {
            "taps": self.setup.taps,
            "value_dim": self.setup.donor.value_dim,
            "dtype": self.dtype,
            "donor": self.facts,
            "tokenizer": self.tokenizer,
            "scales": self.storage.scales,
        }

    def writer(self, rank: int, world_size: int) -> BankWriter:
        """A writer of the bank; arguments and errors as for `BankWriter`."""
        return BankWriter(
            self.out,
            keys=self.selection.kept,
            order=self.reader.order,
            rank=rank,
            world_size=world_size,
            **self.bank_facts,
        )

    def finished(self) -> Bank:
        """The bank that another process has sealed.

        Raises:
            FingerprintError: it is of other settings.
        """
        return finished_bank(self.out, self.keys, self.setup, self.dtype, self.facts)

    def chunks(self, writer: BankWriter) -> list[tuple[int, int]]:
        """Bounds of the chunks with places that are not written yet, ascending."""
        size, end = self.chunk_rows, writer.num_rows
        numbers = {start // size for first, last in writer.missing() for start in range(first, last, size)}
        numbers |= {(last - 1) // size for _, last in writer.missing()}
        return [(number * size, min((number + 1) * size, end)) for number in sorted(numbers)]

    def values(self, start: int, stop: int) -> AnyArray:
        """Values at places ``start .. stop`` of the order, as a writer takes them.

        Raises:
            DonorError: a state is not finite; names the keys.
        """
        rows = np.asarray(self.reader.order[start:stop])
        values = self.reader.values(rows)
        _refuse_strange(self, rows, values)
        return stored_array(values, value_dtype(self.dtype))

    def seal(self, writer: BankWriter, recipient_tokenizer: Any, *, keep_tokenizer: bool) -> Bank:
        """The bank, once ``writer`` finds all rows written."""
        index = NgramIndex.build(self.selection.kept)
        files = beside_bank(self.keys, index, self.setup, recipient_tokenizer, keep_tokenizer=keep_tokenizer)
        alone = self.facts.get("contexts") is None
        return writer.finish(
            index=index, dropped=self.selection.dropped, donor=reading_facts(self.selection, alone=alone), files=files
        )


def prepare(
    keys: KeySet,
    *,
    recipient_tokenizer: Any,
    donor: str | Path | Donor,
    taps: Sequence[int],
    out: Path,
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
    share: tuple[int, int] = (0, 1),
    progress: Progress | None = None,
) -> Job | Bank:
    """Opens the donor, judges the keys, decides what the settings leave open, or takes all that from ``<out>.partial``.

    Several processes that come at once judge together; then one sorts and measures, and the others wait. ``share`` is
    this process among how many. Other arguments and errors as for `memgraft.harvest`.

    Returns:
        What is to be run; the bank where it is finished.
    """
    check_asked(
        donor=donor,
        taps=taps,
        dtype=dtype,
        compute_dtype=compute_dtype,
        contexts=contexts,
        corpus=corpus,
        round_trip=round_trip,
        batch_tokens=batch_tokens,
        chunk_rows=chunk_rows,
        memory=memory,
    )
    working = working_memory(memory)
    partial = partial_of(out)
    around = Contexts.of(contexts)
    mined = mined_corpus(keys, around, corpus)
    if out.exists():
        refuse_other(out, {"dtype": dtype, "taps": tuple(taps)})
    setup = set_up(
        keys,
        recipient_tokenizer,
        donor,
        taps,
        compute_dtype,
        device,
        prefix,
        prepend_bos,
        round_trip,
        recorded=facts_at(out),
        progress=progress,
    )
    how = {
        **setup.prefix.facts(),
        **({"contexts": None} if around is None or mined is None else around.facts(mined)),
        **({"probe": dict(probe)} if probe else {}),
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
        Judge(keys=keys, recipient=setup.recipient, donor=setup.donor.tokenizer, round_trip=round_trip),
        memory=working,
        share=share,
        progress=progress,
    )
    reader = find_reader(
        setup,
        selection,
        contexts=around,
        corpus=mined,
        share=share_prefixes,
        batch_tokens=batch_tokens,
        recorded=facts_at(out),
        partial=partial,
        memory=working,
        progress=progress,
    )
    facts |= reader.facts
    storage = storage_beside(
        partial,
        value_dtype(dtype),
        len(selection.kept),
        {**facts, "dtype": dtype, "taps": list(setup.taps)},
        reader.values,
    )
    if storage.facts:
        facts["storage"] = storage.facts
    return Job(
        keys=keys,
        out=out,
        setup=setup,
        selection=selection,
        reader=reader,
        storage=storage,
        dtype=dtype,
        chunk_rows=chunk_rows,
        facts=facts,
        tokenizer=tokenizer,
    )


def partial_of(out: Path) -> Path:
    """The folder of the unfinished bank."""
    return out.with_name(out.name + ".partial")


def _refuse_strange(job: Job, rows: IntArray, values: torch.Tensor) -> None:
    """Refuses states that are not finite, and lists all keys of the chunk that have them beside the unfinished bank."""
    finite = torch.isfinite(values).flatten(1).all(1).numpy()
    if finite.all():
        return
    strange, donor = np.sort(rows[~finite]).tolist(), job.setup.donor
    keys = [list(job.selection.kept.key(row)) for row in strange]
    texts = job.setup.recipient.decode_inside(keys)
    listed = [{"row": row, "key": key, "text": text} for row, key, text in zip(strange, keys, texts, strict=True)]
    path = partial_of(job.out) / f"not-finite-{int(rows[0])}.jsonl"
    write_text(path, "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in listed))
    raise DonorError(
        f"donor {donor.name}: states of {len(strange)} keys are not finite in {donor.compute_dtype} "
        f"({keys_text(job.selection, strange, job.setup.recipient)}; all of them in {path}); run it in another compute "
        "dtype, such as float32, or take a lower tap; what was finished before is kept"
    )
