"""The commands that would make a bank again, from what its keys and its manifest record."""

import shlex
from collections.abc import Mapping
from typing import Any

from memgraft.bank import Bank

_PYTHON_ALONE = ("keep",)
"""Settings of a mining that no option of ``memgraft mine`` gives."""


def commands_of(bank: Bank) -> list[str]:
    """``memgraft mine`` and ``memgraft harvest`` as the artifacts record them; none for what they record nothing of.

    Words in capitals stand for what is recorded nowhere: names of files, since artifacts name content, and the text
    of a prefix, beside the donor's ids.
    """
    keys, donor = bank.keys.metadata, bank.manifest.donor
    commands = []
    mining = keys.get("mining")
    if isinstance(mining, Mapping) and not any(name in mining for name in _PYTHON_ALONE):
        commands.append(shlex.join([*_mine(mining, keys.get("split")), "-o", "keys.mgk"]))
    if donor.get("fingerprint") and donor.get("prefix_name") is not None:
        commands.append(shlex.join([*_harvest(bank), "-o", "BANK"]))
    return commands


def _mine(mining: Mapping[str, Any], split: Mapping[str, Any] | None) -> list[str]:
    words = ["memgraft", "mine", "CORPUS", "--orders", ",".join(map(str, mining["orders"]))]
    budgets = mining["budgets"]
    if "budget" in mining:
        words += ["--budget", str(mining["budget"]), "--policy", str(mining["policy"])]
    elif all(budget is None for budget in budgets.values()):
        words += ["--budget", "all"]
    else:
        words += ["--budget", ",".join(f"{order}={budget}" for order, budget in budgets.items())]
    words += ["--min-count", str(mining["min_count"])]
    if mining.get("min_documents"):
        words += ["--min-documents", str(mining["min_documents"])]
    if "exclude" in mining:
        words += ["--exclude", "EVALUATION", "--exclude-from", str(mining["exclude"]["from_order"])]
    if mining.get("required"):
        words += ["--require", "REQUIRED"]
    if split and split.get("part") == "train":
        words += ["--held-out", str(split["held_out"]), "--seed", str(split["seed"])]
    return words


def _harvest(bank: Bank) -> list[str]:
    donor = bank.manifest.donor
    words = ["memgraft", "harvest", "keys.mgk", "--tokenizer", "TOKENIZER", "--donor", str(donor["name"])]
    words += ["--taps", ",".join(map(str, bank.taps)), "--value-dtype", bank.manifest.dtype]
    words += ["--compute-dtype", str(donor["compute_dtype"])]
    name = donor["prefix_name"]
    if donor.get("prefix_chosen") == "auto":
        words += ["--prefix", "auto"]
    elif name in ("none", "bos"):
        words += ["--prefix", name]
    else:
        bos = str(name).startswith("bos+")
        ids = " ".join(map(str, donor["prefix"][bos:]))
        words += ["--prefix", f"TEXT OF DONOR IDS {ids}", *(["--prepend-bos"] if bos else [])]
    if contexts := donor.get("contexts"):
        words += ["--contexts", f"{contexts['occurrences']},{contexts['left']}", "--corpus", "CORPUS"]
    if donor.get("round_trip", "text") != "text":
        words += ["--round-trip", str(donor["round_trip"])]
    return words
