"""The facts beside a corpus's tokens: which tokenizer made them, and which part of which corpus they are."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from memgraft.errors import TokenError

#: Marks the facts file that :class:`memgraft.CorpusWriter` leaves beside the tokens.
FACTS_FORMAT = "memgraft.corpus"


def read_facts(paths: Iterable[str | os.PathLike[str]]) -> Mapping[str, Any]:
    """What the ``.json`` beside each token file records; shards must agree on it.

    Returns:
        Those of ``tokenizer``, ``tokenizer_mapping``, ``vocab_size``, ``eos_id``, ``special_ids``, ``split`` and
        ``num_tokens`` that are known of all files.

    Raises:
        TokenError: shards are of different tokenizers.
    """
    paths = list(paths)
    facts: dict[str, Any] = {}
    num_tokens: list[int] = []
    mappings: list[Mapping[str, Any] | None] = []
    for path in map(Path, paths):
        beside = path.with_suffix(".json")
        try:
            found = json.loads(beside.read_bytes())
        except (FileNotFoundError, ValueError):
            continue  # no file, or somebody else's
        if not isinstance(found, dict) or found.get("format") != FACTS_FORMAT:
            continue
        for name in ("tokenizer", "vocab_size", "eos_id", "special_ids"):
            if name in facts and facts[name] != found.get(name):
                raise TokenError(
                    f"{beside}: expected {name} {facts[name]} as in the first shard, found {found.get(name)}; "
                    "open corpora of different tokenizers apart"
                )
            facts[name] = found.get(name)
        mappings.append(found.get("tokenizer_mapping"))
        num_tokens.append(found.get("num_tokens", 0))
        if len(paths) == 1 and isinstance(found.get("split"), dict):
            facts["split"] = found["split"]
    if mappings and all(mapping == mappings[0] for mapping in mappings):
        facts["tokenizer_mapping"] = mappings[0]
    if num_tokens and len(num_tokens) == len(paths):
        facts["num_tokens"] = sum(num_tokens)
    return facts
