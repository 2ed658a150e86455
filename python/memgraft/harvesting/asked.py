"""What a harvest is asked for, refused where options and a look at files tell: before torch comes, or a donor."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memgraft.bank.dtypes import value_dtype
from memgraft.errors import ArgumentError, DonorError, FingerprintError, TokenError
from memgraft.harvesting.devices import check_compute_dtype
from memgraft.harvesting.folder import local_donor, refuse_hub_name
from memgraft.harvesting.gguf import gguf_blocks
from memgraft.harvesting.memory import working_memory
from memgraft.harvesting.occurrences import Contexts
from memgraft.keyset import KeySet
from memgraft.tokenizer import TextCodec, differs_from, facts_of_keys, open_tokenizer


def check_asked(
    *,
    donor: object,
    taps: Sequence[int] | None,
    dtype: str,
    compute_dtype: str,
    contexts: Contexts | Sequence[int] | None,
    corpus: object,
    round_trip: str,
    batch_tokens: int,
    chunk_rows: int,
    memory: int | str,
    **_: Any,
) -> None:
    """Refuses options of `memgraft.harvest`; ``taps`` may be None where a probe is to choose them.

    Raises:
        ArgumentError: an option is out of range, or contexts and corpus are not given together.
        DonorError: nothing is where the donor is said to be, or it has no such tap.
    """
    value_dtype(dtype)
    if round_trip not in ("text", "ids"):
        raise ArgumentError(f'round_trip: expected "text" or "ids", found {round_trip!r}')
    if batch_tokens < 1 or chunk_rows < 1:
        raise ArgumentError(f"batch_tokens {batch_tokens}, chunk_rows {chunk_rows}: expected at least 1")
    check_compute_dtype(compute_dtype)
    working_memory(memory)
    refuse_apart(Contexts.of(contexts), corpus)
    refuse_donor(donor, taps)


def refuse_apart(contexts: Contexts | None, corpus: object) -> None:
    """Refuses contexts without a corpus, and a corpus without contexts.

    Raises:
        ArgumentError: one is None and the other is not.
    """
    if contexts is None and corpus is not None:
        raise ArgumentError("corpus: expected with contexts alone, got one without; leave it out, or give contexts")
    if contexts is not None and corpus is None:
        raise ArgumentError("contexts: expected the corpus that the keys were mined from, got none; give corpus")


def recipient_codec(keys: KeySet, tokenizer: Any) -> TextCodec:
    """The recipient's tokenizer, opened.

    Raises:
        TokenError: it has more tokens than the keys' vocabulary.
        FingerprintError: it is not the one that made the keys' tokens.
    """
    recipient = open_tokenizer(tokenizer)
    if recipient.own_size > keys.vocab_size:
        raise TokenError(
            f"the recipient tokenizer has {recipient.own_size} tokens, "
            f"the key set was mined for a vocabulary of {keys.vocab_size}; "
            "mine again with the tokenizer's size, or name the tokenizer that made these tokens"
        )
    if difference := differs_from(recipient, facts_of_keys(keys.metadata)):
        raise FingerprintError(
            f"tokenizer {tokenizer}: not the one that made the keys' tokens: {difference}; "
            "name the tokenizer.json that tokenised the corpus"
        )
    return recipient


def refuse_donor(donor: object, taps: Sequence[int] | None = None) -> None:
    """Refuses a donor that is neither on this machine nor on the hub, and taps that it does not have, by its files.

    Raises:
        DonorError: there is none, or no such tap.
    """
    if isinstance(donor, (str, Path)) and local_donor(donor) is None:
        refuse_hub_name(str(donor))
    if taps is not None:
        refuse_taps(donor, taps)


def refuse_taps(donor: object, taps: Sequence[int]) -> None:
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
    if not isinstance(donor, (str, Path)):  # it is open
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
