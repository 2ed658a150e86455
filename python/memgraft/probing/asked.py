"""What a probe is asked for, refused where options and a look at files tell: before torch comes, or a donor."""

from collections.abc import Sequence

from memgraft.arguments import refuse_text
from memgraft.bank.dtypes import value_dtype
from memgraft.errors import ArgumentError
from memgraft.harvesting.asked import refuse_donor
from memgraft.harvesting.devices import check_compute_dtype
from memgraft.harvesting.occurrences import Contexts

NORMALISATIONS = ("rms", "none")
"""What is done to a value before it is projected: as the graft layer does, or nothing."""


def check_probe(
    *,
    donors: Sequence[object],
    taps: Sequence[int] | None,
    contexts: Sequence[Contexts | Sequence[int] | None],
    dtypes: Sequence[str],
    normalisations: Sequence[str],
    minutes: float,
    num_keys: int | None,
    seeds: int,
    compute_dtype: str,
    **_: object,
) -> None:
    """Refuses options of `memgraft.probing.probe`.

    Raises:
        ArgumentError: an option is out of range.
        DonorError: nothing is where a donor is said to be, or it has no such tap.
    """
    refuse_text(dtypes=dtypes, normalisations=normalisations)
    if not dtypes or not normalisations or seeds < 1 or not minutes > 0 or (num_keys is not None and num_keys < 8):
        raise ArgumentError(
            f"expected at least one dtype, normalisation and seed, some minutes and 8 keys; found dtypes {dtypes}, "
            f"normalisations {normalisations}, seeds {seeds}, minutes {minutes}, num_keys {num_keys}"
        )
    for dtype in dtypes:
        value_dtype(dtype)
    if strange := sorted(set(normalisations) - set(NORMALISATIONS)):
        raise ArgumentError(f"normalisations: expected {', '.join(NORMALISATIONS)}, found {strange[0]!r}")
    check_compute_dtype(compute_dtype)
    for each in contexts:
        Contexts.of(each)
    for donor in donors:
        refuse_donor(donor, taps)
