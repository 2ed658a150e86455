"""The candidates of a probe: what passes over the donors gave, stored and normalised in each way that is asked for."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from memgraft.bank.dtypes import channel_scales, decode, encode, value_dtype
from memgraft.errors import KeySetError
from memgraft.probing.hits import Sample
from memgraft.probing.reading import Pass, prefix_name
from memgraft.probing.softmax import FloatArray, normalised


def in_common(sample: Sample, passes: Sequence[Pass]) -> tuple[Sample, list[Pass]]:
    """The keys that every donor has a text for, since all are examined on the same hits."""
    rows = passes[0].rows
    for one in passes[1:]:
        rows = np.intersect1d(rows, one.rows)
    kept = sample.of_rows(rows) if len(rows) else sample
    if not len(rows) or not len(kept.exam) or not len(kept.training):
        raise KeySetError(
            f"of {len(sample.keys)} sampled keys none has a text for all donors and is hit; draw more keys"
        )
    return kept, [one.of_rows(rows) for one in passes]


def candidates_of(
    passes: Sequence[Pass], dtypes: Sequence[str], normalisations: Sequence[str]
) -> Iterator[tuple[dict[str, Any], Callable[[], FloatArray]]]:
    """Facts of each candidate, and what makes its values."""
    for one in passes:
        around = one.reading.contexts
        read = prefix_name(one.prefix, one.reading.prefix)
        if around is not None:
            read = f"mean of {around.occurrences} contexts of {around.left}, {read}"
        for place, tap in enumerate(one.taps):
            for dtype in dtypes:
                for how in normalisations:
                    extra = [dtype] if len(dtypes) > 1 else []
                    extra += [f"normalised {how}"] if len(normalisations) > 1 else []
                    facts = {
                        "name": ", ".join([f"{one.reading.name} tap {tap}", read, *extra]),
                        "keys_per_second": round(one.keys_per_second[place], 1),
                        "bytes_per_row": one.values.shape[2] * value_dtype(dtype).size,
                        "settings": {
                            "donor": one.reading.name,
                            "tap": tap,
                            "prefix": list(one.prefix["prefix"]),
                            "prefix_name": one.prefix["prefix_name"],
                            "contexts": None if around is None else [around.occurrences, around.left],
                            "dtype": dtype,
                            "normalisation": how,
                            "compute_dtype": one.compute_dtype,
                        },
                    }
                    yield (
                        facts,
                        lambda one=one, place=place, dtype=dtype, how=how: normalised(  # type: ignore[misc]
                            stored(one.values[:, place], dtype), how
                        ),
                    )


def stored(values: FloatArray, dtype: str) -> FloatArray:
    """(N, V) values after they were stored as ``dtype``."""
    kind = value_dtype(dtype)
    scales = channel_scales(values[:, None]) if kind.scales == "channel" else None
    codes, row_scales = encode(values[:, None], kind, scales)
    found: FloatArray = decode(codes, kind, row_scales if kind.scales == "row" else scales)[:, 0]
    return found
