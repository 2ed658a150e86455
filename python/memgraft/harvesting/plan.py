"""What a harvest would do: every key judged, the donor timed on a sample, nothing written."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from memgraft.arguments import refuse_paths
from memgraft.bank.dtypes import value_dtype
from memgraft.corpus import Corpus
from memgraft.harvesting.asked import check_asked
from memgraft.harvesting.donor import Donor
from memgraft.harvesting.memory import WORKING_MEMORY, needed_memory
from memgraft.harvesting.occurrences import Contexts
from memgraft.harvesting.prefix import Prefix, PrefixChoice
from memgraft.harvesting.readers import KeysAlone, Reader, find_reader, mined_corpus
from memgraft.harvesting.selecting import Progress, select_keys
from memgraft.harvesting.setup import set_up
from memgraft.harvesting.sharing import Sharing
from memgraft.harvesting.text import RoundTrip
from memgraft.keyset import KeySet
from memgraft.progress import callback


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
    memory: Mapping[str, int] = field(default_factory=dict)
    """Bytes that would be allocated beside the donor, see `needed_memory`."""

    @property
    def seconds(self) -> float:
        """Expected time of the donor run."""
        return self.num_rows / self.keys_per_second if self.keys_per_second else 0.0


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
    contexts: Contexts | Sequence[int] | None = None,
    corpus: Corpus | None = None,
    round_trip: RoundTrip = "text",
    share_prefixes: bool = True,
    batch_tokens: int = 1024,
    chunk_rows: int = 2048,
    device: str | None = None,
    memory: int | str = WORKING_MEMORY,
    progress: Progress | bool | None = None,
) -> HarvestPlan:
    """Judges every key and times the donor on a sample; writes nothing. Arguments and errors as for `harvest`."""
    refuse_paths(keys=keys, corpus=corpus)
    progress = callback(progress)
    storage = value_dtype(dtype)
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
    around = Contexts.of(contexts)
    mined = mined_corpus(keys, around, corpus)
    setup = set_up(keys, recipient_tokenizer, donor, taps, compute_dtype, device, prefix, prepend_bos, round_trip)
    selection = select_keys(keys, setup.recipient, setup.donor.tokenizer, round_trip, progress)
    alone = KeysAlone.found(setup, selection, share_prefixes, batch_tokens, {})
    sample = min(2048, len(selection.kept))
    middle = max(0, (len(selection.kept) - sample) // 2)
    rows = np.asarray(alone.order[middle : middle + sample])
    reader: Reader = alone
    if around is not None:
        part = selection.of_rows(rows)
        options: dict[str, Any] = {"contexts": around, "corpus": mined, "share": False, "batch_tokens": batch_tokens}
        reader, rows = find_reader(setup, part, **options, recorded={}, progress=progress), np.arange(len(rows))
    reader.values(rows[:64])  # warm-up
    started = time.perf_counter()
    reader.values(rows)
    rate = sample / (time.perf_counter() - started)
    return HarvestPlan(
        num_keys=len(keys),
        num_rows=len(selection.kept),
        dropped=selection.dropped,
        taps=setup.taps,
        value_dim=setup.donor.value_dim,
        num_bytes=len(selection.kept) * len(setup.taps) * setup.donor.value_dim * storage.size,
        keys_per_second=rate,
        prefix=setup.prefix,
        num_donor_tokens=alone.facts["num_donor_tokens"],
        num_prefixes=alone.facts["num_prefixes"],
        sharing=alone.sharing,
        memory=needed_memory(
            num_rows=len(selection.kept),
            order=sum(order * keys for order, keys in selection.kept.num_keys_by_order.items()) / len(selection.kept),
            num_taps=len(setup.taps),
            value_dim=setup.donor.value_dim,
            dtype=dtype,
            chunk_rows=chunk_rows,
            memory=memory,
        ),
    )
