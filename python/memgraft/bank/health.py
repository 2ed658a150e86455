"""Whether a bank's rows tell their keys apart: how alike and how large they are, by how much the donor read of them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from memgraft.bank.bank import Bank

ALIKE = 0.95
"""Mean cosine above which a group's rows count as collapsed."""
_SAMPLE = 96
_LONGEST = 8
"""Keys of so many donor tokens and more are one group."""
_FEW = 8
"""Fewer sampled rows say nothing about a group."""


def length_groups(lengths: npt.ArrayLike, counts: npt.ArrayLike) -> dict[str, dict[str, Any]]:
    """What ``bank.json`` keeps of the donor's reading: rows by number of donor tokens, the prefix not counted.

    Args:
        lengths: (rows,) donor tokens of each key.
        counts: (rows,) how often each key was counted.

    Returns:
        By length (``"8+"`` is the last): ``rows``, ``share`` of all counts, and a ``sample`` of rows, spread evenly.
    """
    lengths = np.minimum(np.asarray(lengths), _LONGEST)
    counts = np.asarray(counts, dtype=np.float64)
    groups = {}
    for length in np.unique(lengths).tolist():
        rows = np.flatnonzero(lengths == length)
        groups[f"{length}+" if length == _LONGEST else str(length)] = {
            "rows": len(rows),
            "share": round(float(counts[rows].sum() / max(counts.sum(), 1.0)), 4),
            "sample": " ".join(map(str, _spread(rows).tolist())),
        }
    return groups


def bank_health(bank: Bank) -> dict[str, dict[str, Any]]:
    """How alike (mean cosine) and how large (median norm) sampled rows are, by group; the worst tap of each.

    Groups are by the number of donor tokens where the bank recorded it, else by the order of the key.
    """
    groups: Mapping[str, Mapping[str, Any]] | None = bank.manifest.donor.get("rows_by_donor_length")
    kind = "donor token"
    if groups is None or sum(int(group["rows"]) for group in groups.values()) != bank.num_rows:
        # An old bank, or one that was cut or put together from others, whose rows have other numbers.
        arrays, kind = bank.keys.arrays(), "recipient token"
        groups = length_groups(np.diff(arrays.offsets), arrays.counts)
    return {
        f"{name} {kind}{'' if name == '1' else 's'}": {
            "rows": int(group["rows"]),
            "share_of_counts": float(group["share"]),
            **_figures(bank, [int(row) for row in group["sample"].split()]),
        }
        for name, group in groups.items()
    }


def collapsed(health: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A sentence for each group whose rows are nearly one value."""
    return [
        f"the {group['rows']:,} rows of {name} ({group['share_of_counts']:.1%} of all counts) are nearly one value: "
        f"mean cosine {group['mean_cosine']:.3f}; harvest with prefix='auto', which puts neutral tokens before every "
        "key, or mine longer keys"
        for name, group in health.items()
        if group["sampled"] >= _FEW and group["mean_cosine"] > ALIKE
    ]


def _spread(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    if len(rows) <= _SAMPLE:
        return rows
    return rows[np.linspace(0, len(rows) - 1, _SAMPLE).astype(np.int64)]


def _figures(bank: Bank, sample: list[int]) -> dict[str, Any]:
    values_NKV = bank.floats(np.array(sample, dtype=np.int32)).astype(np.float64)
    norms_NK = np.linalg.norm(values_NKV, axis=2)
    unit_NKV = values_NKV / np.maximum(norms_NK, 1e-30)[..., None]
    number = len(sample)
    cosines, duplicates = [0.0], [0.0]
    if number > 1:
        apart = ~np.eye(number, dtype=bool)
        for tap in range(values_NKV.shape[1]):
            cosines_NN = (unit_NKV[:, tap] @ unit_NKV[:, tap].T)[apart]
            cosines.append(float(cosines_NN.mean()))
            duplicates.append(float((cosines_NN > 0.99).mean()))
    return {
        "sampled": number,
        "mean_cosine": round(max(cosines), 4),
        "near_duplicate_pairs": round(max(duplicates), 4),
        "median_norm": float(f"{np.median(norms_NK):.4g}"),
    }
