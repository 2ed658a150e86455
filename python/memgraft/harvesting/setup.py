"""What a harvest is made with: tokenizers, donor, taps, prefix; checked against the keys before the donor is opened."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memgraft.harvesting.asked import recipient_codec, refuse_taps
from memgraft.harvesting.devices import best_device
from memgraft.harvesting.donor import Donor, open_donor
from memgraft.harvesting.forward import check_taps
from memgraft.harvesting.prefix import Prefix, PrefixChoice, find_prefix
from memgraft.harvesting.selecting import Progress
from memgraft.harvesting.text import RoundTrip
from memgraft.keyset import KeySet
from memgraft.tokenizer import TextCodec


@dataclass(frozen=True, kw_only=True)
class Setup:
    """An open donor and how it is run."""

    recipient: TextCodec
    donor: Donor
    taps: tuple[int, ...]
    round_trip: RoundTrip
    prefix: Prefix


def set_up(
    keys: KeySet,
    recipient_tokenizer: Any,
    donor: str | Path | Donor,
    taps: Sequence[int],
    compute_dtype: str,
    device: str | None,
    prefix: PrefixChoice,
    prepend_bos: bool,
    round_trip: RoundTrip,
    recorded: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Setup:
    """Opens what `memgraft.harvest` was given; ``recorded`` are the donor facts of the bank that is taken up."""
    recipient = recipient_codec(keys, recipient_tokenizer)
    refuse_taps(donor, taps)
    if not isinstance(donor, Donor):
        device = best_device(device)
    opened = open_donor(donor, compute_dtype=compute_dtype, device=device, progress=progress)
    depths = check_taps(opened, taps)
    return Setup(
        recipient=recipient,
        donor=opened,
        taps=depths,
        round_trip=round_trip,
        prefix=find_prefix(opened, prefix, taps=depths, prepend_bos=prepend_bos, recorded=recorded),
    )
