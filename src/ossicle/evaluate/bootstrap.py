"""Compute 95% confidence intervals by resampling the units (utterances or speakers) of a test set.

Shapes: N utterances, U units, R resamples, M metrics. A resample draws U units with replacement, and each unit brings
all of its utterances (cluster bootstrap), because the errors of one speaker are correlated. All metrics and runs of one
call share the same resamples, which makes a comparison paired (Koehn, 2004; Bisani and Ney, 2004).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from ossicle.evaluate.parts import Floats, Parts

RESAMPLES = 1000
"""Default number of resamples."""
COVERAGE = 95.0
"""Percentage of the resampled values inside an interval."""
_CHUNK = 2_000_000
"""Maximum number of weights in memory at a time (16 MB)."""


@dataclass(frozen=True)
class Interval:
    """Middle 95% of the resampled values."""

    low: float
    high: float


@dataclass(frozen=True)
class Paired:
    """Difference between run B and run A on the same utterances."""

    difference: float
    """B - A."""
    interval: Interval | None
    """Interval of the difference; None if there is only one unit, or no resampling."""
    p: float | None
    """Two-sided p-value: share of resampled differences that deviate from their mean by at least ``|difference|``."""


def resample(parts: Sequence[Parts], units: Sequence[Hashable], *, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Return the value of each of the M metrics in each resample, (M, R).

    Args:
        parts: counts of the M metrics, N rows each.
        units: unit of each utterance, (N,).
        resamples: number of resamples R.
        seed: seed of the draw.
    """
    sums = [_sum_by_unit(each.counts, units) for each in parts]  # M x (U, K)
    count = len(sums[0])
    generator = np.random.default_rng(seed)
    values: list[Floats] = []
    step = max(1, _CHUNK // count)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = generator.integers(0, count, size=(rows, count)) + count * np.arange(rows)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count).astype(float)  # (rows, U)
        values.append(np.stack([each.value_of(weights @ s) for each, s in zip(parts, sums, strict=True)]))
    return np.concatenate(values, axis=1)


def intervals(
    parts: Sequence[Parts], units: Sequence[Hashable], *, resamples: int = RESAMPLES, seed: int = 0
) -> list[Interval | None]:
    """Return the interval of each metric; None for all if there are fewer than two units, or no resamples."""
    if len(set(units)) < 2 or resamples == 0 or not parts:
        return [None] * len(parts)
    return [percentile_interval(row) for row in resample(parts, units, resamples=resamples, seed=seed)]


def paired(
    first: Sequence[Parts],
    second: Sequence[Parts],
    units: Sequence[Hashable],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Paired]:
    """Return ``second`` minus ``first`` for each metric; row i of all counts is the same utterance.

    The p-value is computed as in sacreBLEU, (c + 1) / (R + 1). The R resampled differences are shifted to a mean of 0,
    and c counts those whose absolute value is at least that of the observed difference.
    """
    differences = [b.value - a.value for a, b in zip(first, second, strict=True)]
    if len(set(units)) < 2 or resamples == 0:
        return [Paired(difference, None, None) for difference in differences]
    values = resample([*first, *second], units, resamples=resamples, seed=seed)  # (2 M, R)
    drawn = values[len(first) :] - values[: len(first)]
    found = []
    for difference, row in zip(differences, drawn, strict=True):
        # the tolerance absorbs rounding: without it, two equal runs could get a p-value below 1
        larger = int((np.abs(row - row.mean()) >= abs(difference) - 1e-9).sum())
        found.append(Paired(difference, percentile_interval(row), (larger + 1) / (len(row) + 1)))
    return found


def percentile_interval(values: Floats) -> Interval:
    """Return the middle 95% of resampled values (R,)."""
    tail = (100 - COVERAGE) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return Interval(float(low), float(high))


def _sum_by_unit(counts: Floats, units: Sequence[Hashable]) -> Floats:
    """Sum counts (N, K) within each unit and return (U, K), with units in the order of their first utterance."""
    number: dict[Hashable, int] = {}
    rows = np.array([number.setdefault(unit, len(number)) for unit in units])
    sums = np.zeros((len(number), counts.shape[1]))
    np.add.at(sums, rows, counts)
    return sums
