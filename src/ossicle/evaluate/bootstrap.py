"""How sure a score is: 95% intervals by resampling the units (utterances or speakers) of a test set.

Shapes: N utterances, U units, R resamples, M metrics. A resample draws U units with replacement; each unit brings all
of its utterances (the cluster bootstrap), since errors of one speaker go together. Metrics and runs that are given in
one call see the same resamples: that is what makes a comparison paired (Koehn, 2004; Bisani and Ney, 2004).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from ossicle.evaluate.parts import Floats, Parts

RESAMPLES = 1000
COVERAGE = 95.0
_CHUNK = 2_000_000
"""Weights held at a time, to bound memory (16 MB)."""


@dataclass(frozen=True)
class Interval:
    """The middle 95% of the resampled values."""

    low: float
    high: float


@dataclass(frozen=True)
class Paired:
    """How far run B is from run A, on the same utterances."""

    difference: float
    """B - A."""
    interval: Interval | None
    """Of the difference; null where there is one unit only."""
    p: float | None
    """Two-sided: how often resampled differences stray from their mean as far as the difference is from 0."""


def resample(parts: Sequence[Parts], units: Sequence[Hashable], *, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Values of the M metrics in each resample, (M, R); ``units`` (N,) names the unit of each utterance."""
    sums = [_by_unit(each.counts, units) for each in parts]  # M x (U, K)
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
    """One interval per metric; None for all where there are fewer than two units to draw from, or no resamples."""
    if len(set(units)) < 2 or resamples == 0 or not parts:
        return [None] * len(parts)
    return [interval(row) for row in resample(parts, units, resamples=resamples, seed=seed)]


def paired(
    first: Sequence[Parts],
    second: Sequence[Parts],
    units: Sequence[Hashable],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Paired]:
    """``second`` minus ``first``, metric by metric; row i of all counts is the same utterance.

    The p-value is sacreBLEU's: the distribution of differences, shifted to a mean of 0, and (c + 1) / (R + 1).
    """
    differences = [b.value - a.value for a, b in zip(first, second, strict=True)]
    if len(set(units)) < 2 or resamples == 0:
        return [Paired(difference, None, None) for difference in differences]
    values = resample([*first, *second], units, resamples=resamples, seed=seed)  # (2 M, R)
    drawn = values[len(first) :] - values[: len(first)]
    found = []
    for difference, row in zip(differences, drawn, strict=True):
        # a tolerance, so that equal runs differ in no resample by more than they do in truth
        strays = int((np.abs(row - row.mean()) >= abs(difference) - 1e-9).sum())
        found.append(Paired(difference, interval(row), (strays + 1) / (len(row) + 1)))
    return found


def interval(values: Floats) -> Interval:
    """The middle 95% of resampled values (R,)."""
    tail = (100 - COVERAGE) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return Interval(float(low), float(high))


def _by_unit(counts: Floats, units: Sequence[Hashable]) -> Floats:
    """Counts (N, K) summed within each unit, (U, K), units in the order of their first utterance."""
    number: dict[Hashable, int] = {}
    rows = np.array([number.setdefault(unit, len(number)) for unit in units])
    sums = np.zeros((len(number), counts.shape[1]))
    np.add.at(sums, rows, counts)
    return sums
