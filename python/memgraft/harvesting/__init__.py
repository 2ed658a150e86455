"""Harvest: run the donor over the keys, once, offline (docs/METHOD.md, section 2).

The package is called ``harvesting`` because ``memgraft.harvest`` is the function.
"""

from memgraft.harvesting.devices import native_compute_dtype
from memgraft.harvesting.diagnosis import Finding
from memgraft.harvesting.donor import Donor, open_donor
from memgraft.harvesting.folder import donor_folder, folder_fingerprint
from memgraft.harvesting.occurrences import Contexts
from memgraft.harvesting.plan import HarvestPlan, plan_harvest
from memgraft.harvesting.prefix import Prefix, PrefixChoice, find_prefix
from memgraft.harvesting.recompute import RowCheck, verify_rows
from memgraft.harvesting.run import harvest
from memgraft.harvesting.text import KeyTexts, TextCodec, key_texts, open_tokenizer

__all__ = [
    "Contexts",
    "Donor",
    "Finding",
    "HarvestPlan",
    "KeyTexts",
    "Prefix",
    "PrefixChoice",
    "RowCheck",
    "TextCodec",
    "donor_folder",
    "find_prefix",
    "folder_fingerprint",
    "harvest",
    "key_texts",
    "native_compute_dtype",
    "open_donor",
    "open_tokenizer",
    "plan_harvest",
    "verify_rows",
]
