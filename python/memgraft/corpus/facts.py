"""The facts beside a corpus's tokens: which tokenizer made them, and which part of which corpus they are."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from memgraft.errors import TokenError
from memgraft.tokenizer import other_mapping, recorded_facts

FACTS_FORMAT = "memgraft.corpus"
"""Marks the facts file that :class:`memgraft.CorpusWriter` leaves beside the tokens."""


def read_facts(paths: Iterable[str | os.PathLike[str]]) -> Mapping[str, Any]:
    """What the ``.json`` beside each token file records; shards must agree on it.

    Shards of one tokenizer agree where its file was saved again or got tokens in between.

    Returns:
        Those of ``tokenizer``, ``tokenizer_mapping``, ``vocab_size``, ``eos_id``, ``special_ids``, ``split`` and
        ``num_tokens`` that are known of all files.

    Raises:
        TokenError: shards are of different tokenizers.
    """
    paths = list(paths)
    facts: dict[str, Any] = {}
    num_tokens: list[int] = []
    for path in map(Path, paths):
        beside = path.with_suffix(".json")
        try:
            found = json.loads(beside.read_bytes())
        except (FileNotFoundError, ValueError):
            continue  # no file, or somebody else's
        if not isinstance(found, dict) or found.get("format") != FACTS_FORMAT:
            continue
        num_tokens.append(found.get("num_tokens", 0))
        if len(paths) == 1 and isinstance(found.get("split"), dict):
            facts["split"] = found["split"]
        taken = {name: found.get(name) for name in ("tokenizer", "vocab_size", "eos_id", "special_ids")}
        mapping = found.get("tokenizer_mapping")
        if len(num_tokens) == 1:
            facts |= {**taken, "tokenizer_mapping": mapping}
        else:
            _agree(beside, facts, taken, mapping)
    if num_tokens and len(num_tokens) == len(paths):
        facts["num_tokens"] = sum(num_tokens)
    return facts


def _agree(beside: Path, facts: dict[str, Any], taken: Mapping[str, Any], mapping: Mapping[str, Any] | None) -> None:
    """Takes the facts of one more shard into ``facts``."""
    mappings = facts["tokenizer_mapping"], mapping
    mine, theirs = (recorded_facts(of["tokenizer"], known) for of, known in zip((facts, taken), mappings, strict=True))
    known = [one for one in mappings if one is not None]
    grown = len(known) == 2 and not other_mapping(mine, theirs)
    if grown:
        facts["tokenizer_mapping"] = min(known, key=lambda one: int(one["vocab_size"]))
        facts["tokenizer"] = facts["tokenizer"] if facts["tokenizer"] == taken["tokenizer"] else None
        facts["vocab_size"] = max(facts["vocab_size"] or 0, taken["vocab_size"] or 0) or None
        facts["special_ids"] = sorted({*(facts["special_ids"] or ()), *(taken["special_ids"] or ())})
    else:
        facts["tokenizer_mapping"] = facts["tokenizer_mapping"] if len(known) == 2 else None
    for name, value in taken.items():
        if facts[name] != value and not (grown and name != "eos_id"):
            raise TokenError(
                f"{beside}: expected {name} {facts[name]} as in the first shard, found {value}; open corpora of "
                "different tokenizers apart"
            )
