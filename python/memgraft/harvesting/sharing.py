"""Whether a donor can run each distinct prefix once, found out by what its architecture says and by running it.

Needed are causal attention that follows a mask of the caller's and positions that are given: recurrent blocks mix what
stands side by side, ALiBi is made from the mask's shape, a sliding window counts places in the sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from memgraft.harvesting.donor import Donor
from memgraft.harvesting.forward import donor_values
from memgraft.harvesting.ordering import longest, longest_place
from memgraft.harvesting.packing import Ragged

# What rounding may do, and how many times what a batch's shape does to the same keys.
_TOLERANCE = {"float32": 2e-5, "bfloat16": 2e-2, "float16": 4e-3}
_TIMES = 3.0
_SAMPLE, _LONGEST = 24, 64


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """Whether prefixes are shared, and why not or how exactly."""

    shared: bool
    reason: str
    """One phrase for people."""
    error: float | None = None
    """The largest relative error of the sample's keys against each run alone; None where it did not run."""


def find_sharing(donor: Donor, taps: Sequence[int], keys: Ragged, head: Sequence[int] = ()) -> Sharing:
    """Decides for ``keys`` (donor tokens, none empty) behind ``head``: by architecture, then by running a sample.

    The decision follows from the donor, the taps and the keys, whoever takes it.
    """
    if reason := _refusal(donor, longest(keys) + len(head)):
        return Sharing(shared=False, reason=reason)
    sample = _sample(keys).headed(head)
    alone = donor_values(donor, taps, sample, max_tokens=1)
    try:
        together = donor_values(donor, taps, sample, max_tokens=4096, shared=True)
    except Exception as failure:  # whatever a forward raises that does not read such a mask
        return Sharing(shared=False, reason=f"its forward takes no tree mask ({type(failure).__name__})")
    error = relative_error(together, alone)
    batched = relative_error(donor_values(donor, taps, sample, max_tokens=4096), alone)
    tolerance = max(_TOLERANCE[donor.compute_dtype], _TIMES * batched)
    if not error <= tolerance:
        return Sharing(shared=False, reason=f"shared states differ by {error:.2g} of their norm", error=error)
    return Sharing(shared=True, reason=f"shared states differ by {error:.1e} of their norm", error=error)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest distance over keys and taps, as a share of the expected state's norm; NaN where one is not finite."""
    found, expected = found.double(), expected.double()
    distance = (found - expected).norm(dim=-1) / expected.norm(dim=-1).clamp_min(1e-30)
    return float(distance.max()) if bool(torch.isfinite(distance).all()) else float("nan")


def _refusal(donor: Donor, longest: int) -> str | None:
    """What the architecture says against sharing, if anything does."""
    config = donor.model.config.get_text_config()
    if getattr(donor.model, "_is_stateful", False):
        return f"{donor.architecture} is recurrent: a state mixes what stands side by side"
    kinds = set(getattr(config, "layer_types", None) or ())
    if odd := sorted(kinds - {"full_attention", "attention", "sliding_attention", "chunked_attention"}):
        return f"{donor.architecture} has blocks of {', '.join(odd)}"
    for name in ("sliding_window", "attention_chunk_size"):
        window = getattr(config, name, None)
        if window and getattr(config, "use_sliding_window", True) and longest > int(window):
            return f"its {name.replace('_', ' ')} of {window} is shorter than the longest key's {longest} tokens"
    return None


def _sample(keys: Ragged) -> Ragged:
    """Keys of all lengths, and made ones: siblings that differ early, a chain of prefixes, a long one."""
    number = len(keys)
    spread = np.unique(np.linspace(0, number - 1, min(number, _SAMPLE)).astype(np.int64))
    chosen = np.unique(np.concatenate([spread, [longest_place(keys)]]))
    lists = [keys.part(place, place + 1).tokens.tolist()[:_LONGEST] for place in chosen.tolist()]
    longest = max(lists, key=len)
    chain = (longest * (8 // len(longest) + 1))[:8] if len(longest) < 8 else longest
    other = lists[0][0] if lists[0][0] != chain[0] else lists[-1][-1]
    lists += [chain[:length] for length in range(1, len(chain) + 1)]
    lists += [[*chain[:length], other] for length in range(1, 5)] + [[other, *chain[:4]]]
    return Ragged.of(lists)
