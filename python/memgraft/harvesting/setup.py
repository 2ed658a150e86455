"""What a harvest is made with: tokenizers, donor, taps, prefix; checked against the keys before the donor is opened."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memgraft.errors import DonorError, FingerprintError, TokenError
from memgraft.harvesting.devices import best_device
from memgraft.harvesting.donor import Donor, open_donor
from memgraft.harvesting.forward import check_taps
from memgraft.harvesting.gguf import gguf_blocks
from memgraft.harvesting.prefix import Prefix, PrefixChoice, find_prefix
from memgraft.harvesting.selecting import Progress
from memgraft.harvesting.text import RoundTrip
from memgraft.keyset import KeySet
from memgraft.tokenizer import TextCodec, differs_from, facts_of_keys, open_tokenizer


@dataclass(frozen=True, kw_only=True)
class Setup:
    """An open donor and how it is run."""

    recipient: TextCodec
    donor: Donor
    taps: tuple[int, ...]
    round_trip: RoundTrip
    prefix: Prefix


def refuse_taps(donor: str | Path | Donor, taps: Sequence[int]) -> None:
    """Refuses taps by what the donor's files say of its blocks; loading weights takes far longer.

    Raises:
        DonorError: they are not ascending, or beyond the donor.
    """
    try:
        taps = tuple(int(tap) for tap in taps)
    except (TypeError, ValueError):
        raise DonorError(f"taps: expected numbers of blocks, as (8,), found {taps!r}") from None
    if not taps or any(tap < 0 for tap in taps) or list(taps) != sorted(set(taps)):
        raise DonorError(f"taps: expected distinct ascending numbers of blocks, found {taps}")
    if isinstance(donor, Donor):
        return
    blocks = blocks_of(donor)
    if blocks is not None and taps[-1] > blocks:
        raise DonorError(
            f"tap {taps[-1]}: donor {Path(donor).name} has {blocks} blocks, so taps run from 0 (embeddings) to {blocks}"
        )


def blocks_of(donor: str | Path) -> int | None:
    """Blocks of a donor by ``config.json`` or the head of its GGUF file; None where only opening it tells."""
    path = Path(donor).expanduser()
    try:
        if path.is_dir() and not (path / "config.json").is_file():
            (path,) = path.glob("*.gguf")
        if path.is_file():
            return gguf_blocks(path)
        config = path / "config.json"
        if not path.exists():
            import huggingface_hub

            cached = huggingface_hub.try_to_load_from_cache(str(donor), "config.json")
            if not isinstance(cached, str):
                return None
            config = Path(cached)
        facts = json.loads(config.read_text(encoding="utf-8"))
        blocks = facts.get("text_config", facts).get("num_hidden_layers")
    except (OSError, ValueError, AttributeError):
        return None  # what `open_donor` refuses
    return blocks if isinstance(blocks, int) else None


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
    recipient = open_tokenizer(recipient_tokenizer)
    if recipient.own_size > keys.vocab_size:
        raise TokenError(
            f"the recipient tokenizer has {recipient.own_size} tokens, "
            f"the key set was mined for a vocabulary of {keys.vocab_size}; "
            "mine again with the tokenizer's size, or name the tokenizer that made these tokens"
        )
    if difference := differs_from(recipient, facts_of_keys(keys.metadata)):
        raise FingerprintError(
            f"tokenizer {recipient_tokenizer}: not the one that made the keys' tokens: {difference}; "
            "name the tokenizer.json that tokenised the corpus"
        )
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
