"""The normalised average of a study's rows: one figure for all tasks, as in the paper's table.

Source: METHOD section 4; here 0 is a row of the study, and 100 what the LLM scores on the transcripts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ossicle_lab.study.interval import column_of

if TYPE_CHECKING:
    from ossicle_lab.study.results import Figure

NORMALISED = "normalised"
"""Column: mean over the trained tasks of (score - lower) / (upper - lower), in percent."""
ABOUT_THE_VOICE = frozenset({"meta", "voice"})
"""Tasks that no transcript answers: what the LLM answers to it is not their 100, so they are left out."""


def references(
    lower: Mapping[str, Figure] | None, upper: Mapping[str, Figure] | None, tasks: Sequence[str]
) -> dict[str, tuple[float, float]] | None:
    """Column of each task -> its scores that count as 0 and as 100; None while one is missing or they do not differ."""
    if lower is None or upper is None:
        return None
    columns = [column_of(task) for task in tasks if task not in ABOUT_THE_VOICE]
    found = {column: (lower[column].mean, upper[column].mean) for column in columns}
    return None if not found or any(low == high for low, high in found.values()) else found


def normalised(
    figures: Mapping[str, Figure], scales: Mapping[str, tuple[float, float]]
) -> tuple[list[float], np.ndarray]:
    """One value per seed, and one per bootstrap draw. Error rates need no change of sign: it cancels in the fraction.

    The references are taken as known: intervals have the uncertainty of the row itself.
    """
    parts = [(figures[column], low, high) for column, (low, high) in scales.items()]
    values = [[100 * (value - low) / (high - low) for value in figure.values] for figure, low, high in parts]
    draws = [100 * (figure.draws - low) / (high - low) for figure, low, high in parts]
    return [sum(seed) / len(parts) for seed in zip(*values, strict=True)], np.mean(draws, axis=0)
