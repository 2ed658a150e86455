"""Harvest: run the donor over the keys, once, offline (docs/METHOD.md, section 2).

The package is called ``harvesting`` because ``memgraft.harvest`` is the function.
"""

from typing import TYPE_CHECKING

from memgraft.deferred import deferred
from memgraft.harvesting.devices import native_compute_dtype
from memgraft.harvesting.folder import donor_folder, folder_fingerprint
from memgraft.harvesting.occurrences import Contexts
from memgraft.harvesting.text import KeyTexts, TextCodec, key_texts, open_tokenizer

if TYPE_CHECKING:
    from memgraft.harvesting.diagnosis import Finding
    from memgraft.harvesting.donor import Donor, open_donor
    from memgraft.harvesting.plan import HarvestPlan, plan_harvest
    from memgraft.harvesting.prefix import Prefix, PrefixChoice, find_prefix
    from memgraft.harvesting.recompute import RowCheck, verify_rows
    from memgraft.harvesting.run import harvest

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

__getattr__ = deferred(
    __name__,
    {
        "diagnosis": ("Finding",),
        "donor": ("Donor", "open_donor"),
        "plan": ("HarvestPlan", "plan_harvest"),
        "prefix": ("Prefix", "PrefixChoice", "find_prefix"),
        "recompute": ("RowCheck", "verify_rows"),
        "run": ("harvest",),
    },
)
