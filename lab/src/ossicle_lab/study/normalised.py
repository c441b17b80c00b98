"""Compute the normalised average of a study's rows: one figure for all tasks, as in the paper's table.

Source: METHOD section 4. Here 0 is a row of the study, and 100 is the LLM's score on the transcripts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ossicle_lab.study.interval import column_of
from ossicle_lab.study.table import Figure

NORMALISED = "normalised"
"""Name of the column: mean over the trained tasks of (score - lower) / (upper - lower), in percent."""
ABOUT_THE_VOICE = frozenset({"meta", "voice"})
"""Tasks that a transcript cannot answer. The LLM's score on transcripts is not their 100, so they are left out."""


def references(
    lower: Mapping[str, Figure] | None, upper: Mapping[str, Figure] | None, tasks: Sequence[str]
) -> dict[str, tuple[float, float]] | None:
    """Return the scores that count as 0 and as 100 for each task's column.

    Return None if a reference is missing, or if the two are equal for a task.
    """
    if lower is None or upper is None:
        return None
    columns = [column_of(task) for task in tasks if task not in ABOUT_THE_VOICE]
    found = {column: (lower[column].mean, upper[column].mean) for column in columns}
    return None if not found or any(low == high for low, high in found.values()) else found


def normalised(
    figures: Mapping[str, Figure], scales: Mapping[str, tuple[float, float]]
) -> tuple[list[float], NDArray[np.float64]]:
    """Return the normalised average of each seed and of each bootstrap draw (R,).

    Error rates need no change of sign: it cancels in the fraction. The references count as exact, so intervals contain
    the uncertainty of the row alone.
    """
    parts = [(figures[column], low, high) for column, (low, high) in scales.items()]
    values = [[100 * (value - low) / (high - low) for value in figure.values] for figure, low, high in parts]
    draws = [100 * (figure.draws - low) / (high - low) for figure, low, high in parts]
    return [sum(seed) / len(parts) for seed in zip(*values, strict=True)], np.mean(draws, axis=0)
