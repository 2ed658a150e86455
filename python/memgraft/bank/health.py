"""Whether a bank's rows tell their keys apart: how alike and how large they are, by how much the donor read of them."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from memgraft.bank.bank import Bank

ALIKE = 0.95
"""Mean cosine above which a group's rows count as collapsed."""
TWIN = 0.99
"""Cosine above which two rows count as one."""
MOST_TWINS = 0.25
LEAST_RANK = 0.05
MOST_OUTLIERS = 0.98
MOST_SPREAD = 30.0
"""Thresholds of warnings: share of rows with a twin; effective rank, as a share of what is possible; share of the
square norm in outlier channels; norms from the median up."""
_OUTLIER = 10.0
"""A channel is an outlier if its root mean square is so many times the median channel's."""
_SAMPLE, _WHOLE_SAMPLE = 96, 768
_BLOCK = 1 << 20
_LONGEST = 8
"""Keys of so many donor tokens and more are one group."""
_FEW = 8
"""Fewer sampled rows say nothing about a group."""


def length_groups(
    lengths: npt.ArrayLike, counts: npt.ArrayLike | Callable[[int, int], npt.ArrayLike]
) -> dict[str, dict[str, Any]]:
    """What ``bank.json`` keeps of the donor's reading: rows by number of donor tokens, the prefix not counted.

    Args:
        lengths: (rows,) donor tokens of each key.
        counts: (rows,) how often each key was counted, or ``counts(start, stop)``, which is asked for block by block.

    Returns:
        By length (``"8+"`` is the last): ``rows``, ``share`` of all counts, and a ``sample`` of rows, spread evenly.
    """
    lengths = np.asarray(lengths)
    rows, sums = np.zeros(_LONGEST + 1, np.int64), np.zeros(_LONGEST + 1)
    for start, block in _blocks(lengths):
        rows += np.bincount(block, minlength=_LONGEST + 1)
        some = slice(start, start + len(block))
        weights = np.asarray(
            counts(some.start, some.stop) if callable(counts) else np.asarray(counts)[some], np.float64
        )
        sums += np.bincount(block, weights=weights, minlength=_LONGEST + 1)
    samples: list[list[int]] = [[] for _ in rows]
    wanted = [_places(int(number), _SAMPLE) for number in rows]
    seen = np.zeros_like(rows)
    for start, block in _blocks(lengths):
        here = np.bincount(block, minlength=_LONGEST + 1)
        for length in np.flatnonzero(here).tolist():
            inside = wanted[length] - seen[length]
            inside = inside[(inside >= 0) & (inside < here[length])]
            samples[length] += (start + np.flatnonzero(block == length)[inside]).tolist()
        seen += here
    return {
        f"{length}+" if length == _LONGEST else str(length): {
            "rows": int(rows[length]),
            "share": round(float(sums[length] / max(sums.sum(), 1.0)), 4),
            "sample": " ".join(map(str, samples[length])),
        }
        for length in np.flatnonzero(rows).tolist()
    }


def _blocks(lengths: npt.NDArray[np.integer[Any]]) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """The lengths in blocks, the longest as one, and the row where each block begins."""
    for start in range(0, len(lengths), _BLOCK):
        yield start, np.minimum(lengths[start : start + _BLOCK].astype(np.int64), _LONGEST)


def bank_health(bank: Bank) -> dict[str, dict[str, Any]]:
    """How alike, how large and how varied sampled rows are, by group; of several taps the worst of each.

    Mean cosine of pairs, share of pairs above 0.99 and of rows with such a twin; norms (1 %, median, 99 %), zero rows;
    effective rank (exponential of the entropy of the centred unit rows' spectrum); channels whose mean square is more
    than 100 times the median channel's, and the share of the square norm that they hold.

    Groups are by the number of donor tokens where the bank recorded it, else by the order of the key.
    """
    groups: Mapping[str, Mapping[str, Any]] | None = bank.manifest.donor.get("rows_by_donor_length")
    kind = "donor token"
    if groups is None or sum(int(group["rows"]) for group in groups.values()) != bank.num_rows:
        # An old bank, or one that was cut or put together from others, whose rows have other numbers.
        arrays, kind = bank.keys.arrays(), "recipient token"
        offsets: npt.NDArray[np.int64] = arrays.offsets.astype(np.int64)
        lengths = offsets[1:] - offsets[:-1]
        groups = length_groups(lengths, arrays.counts)
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
        f"mean cosine {group['mean_cosine']:.3f}; harvest with prefix='auto', which puts those neutral tokens before "
        "every key that help most at these taps; where it has, take another tap, or mine longer keys"
        for name, group in health.items()
        if group["sampled"] >= _FEW and group["mean_cosine"] > ALIKE
    ]


def _places(number: int, most: int) -> npt.NDArray[np.int64]:
    """At most ``most`` of ``number`` places, spread evenly."""
    if number <= most:
        return np.arange(number)
    return np.linspace(0, number - 1, most).astype(np.int64)


def whole_health(bank: Bank) -> dict[str, Any]:
    """The figures of `bank_health` for rows spread evenly over the whole bank, whatever the donor read of them."""
    return {"rows": bank.num_rows, **_figures(bank, _places(bank.num_rows, _WHOLE_SAMPLE).tolist())}


def health_warnings(groups: Mapping[str, Mapping[str, Any]], whole: Mapping[str, Any]) -> list[str]:
    """A sentence for each figure of `bank_health` and `whole_health` that a person should look at."""
    lines = collapsed(groups)
    if whole["sampled"] < _FEW:
        return lines
    if whole["zero_rows"]:
        lines.append(
            f"{whole['zero_rows']:.1%} of the sampled rows are zero: they were never written, or the donor's state is "
            "nothing; check them with `memgraft verify BANK --donor DONOR --sample 256`"
        )
    if whole["rows_with_twin"] > MOST_TWINS:
        lines.append(
            f"{whole['rows_with_twin']:.1%} of the sampled rows have a twin (cosine above {TWIN}) of another key: "
            "these keys are told apart by nothing; take a deeper tap, or harvest with --contexts, and with more places "
            "where it was"
        )
    channels = int(whole["channels"])
    possible = min(whole["sampled"] - 1, channels)
    if whole["effective_rank"] < LEAST_RANK * possible:
        lines.append(
            f"the rows span {whole['effective_rank']:.1f} directions of {possible} possible: most of what they hold is "
            "alike; compare taps and prefixes with `memgraft probe`"
        )
    if whole["outlier_channels"] and whole["outlier_energy"] > MOST_OUTLIERS:
        lines.append(
            f"{whole['outlier_channels']} of {channels} channels hold {whole['outlier_energy']:.1%} of the rows' "
            "square norm, so that normalised rows hold little else; take a tap before these arise, or store no 8 bits"
        )
    if whole["norms"][2] > MOST_SPREAD * whole["norms"][1]:
        lines.append(
            f"norms reach from {whole['norms'][0]:.4g} over {whole['norms'][1]:.4g} (median) to "
            f"{whole['norms'][2]:.4g} (99 %): a few rows are of another kind; harvest with prefix='auto', "
            "and where it was take another tap"
        )
    return lines


def _figures(bank: Bank, sample: list[int]) -> dict[str, Any]:
    """Figures of the rows ``sample``; of several taps the worst of each."""
    values_NKV = bank.floats(np.array(sample, dtype=np.int32)).astype(np.float64)
    taps = [_tap_figures(values_NKV[:, place]) for place in range(values_NKV.shape[1])]
    norms_NK = np.linalg.norm(values_NKV, axis=2)
    return {
        "sampled": len(sample),
        "mean_cosine": round(max(tap["mean_cosine"] for tap in taps), 4),
        "near_duplicate_pairs": round(max(tap["pairs"] for tap in taps), 4),
        "rows_with_twin": round(max(tap["twins"] for tap in taps), 4),
        "median_norm": float(f"{np.median(norms_NK):.4g}"),
        "norms": [float(f"{norm:.4g}") for norm in np.quantile(norms_NK, (0.01, 0.5, 0.99))],
        "zero_rows": round(float((norms_NK == 0).any(axis=1).mean()), 4),
        "effective_rank": round(min(tap["rank"] for tap in taps), 1),
        "channels": values_NKV.shape[2],
        "outlier_channels": max(tap["outliers"] for tap in taps),
        "outlier_energy": round(max(tap["energy"] for tap in taps), 4),
    }


def _tap_figures(values_NV: npt.NDArray[np.float64]) -> dict[str, float]:
    """Figures of the sampled rows of one tap."""
    number = len(values_NV)
    unit_NV = values_NV / np.maximum(np.linalg.norm(values_NV, axis=1), 1e-30)[:, None]
    cosines_NN = unit_NV @ unit_NV.T
    np.fill_diagonal(cosines_NN, np.nan)
    # Only directions that rows differ in tell keys apart.
    spectrum = np.linalg.svd(unit_NV - unit_NV.mean(axis=0), compute_uv=False) ** 2
    shares = spectrum[spectrum > 1e-12 * max(spectrum.sum(), 1e-30)] / max(spectrum.sum(), 1e-30)
    energy_V = np.square(values_NV).mean(axis=0)
    outliers = energy_V > _OUTLIER**2 * max(float(np.median(energy_V)), 1e-30)
    return {
        "mean_cosine": float(np.nanmean(cosines_NN)) if number > 1 else 0.0,
        "pairs": float((cosines_NN[~np.isnan(cosines_NN)] > TWIN).mean()) if number > 1 else 0.0,
        "twins": float((np.nan_to_num(cosines_NN, nan=-1) > TWIN).any(axis=1).mean()),
        "rank": float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else 0.0,
        "outliers": int(outliers.sum()),
        "energy": float(energy_V[outliers].sum() / max(energy_V.sum(), 1e-30)),
    }
