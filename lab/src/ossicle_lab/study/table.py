"""The rows and figures of a study's table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ossicle_lab.study.config import Mode


@dataclass(frozen=True)
class Figure:
    """A score with its uncertainty, in percent."""

    mean: float
    """Mean over seeds."""
    sd: float | None
    """Standard deviation over seeds; None for a single seed."""
    low: float
    """Lower end of the 95% bootstrap interval over utterances, for the mean over seeds."""
    high: float
    """Upper end of that interval."""
    values: list[float]
    """The score of each seed."""
    draws: NDArray[np.float64]
    """(R,) bootstrap scores of the mean, paired with those of other figures of the same column. Not in the file."""

    def without_draws(self) -> dict[str, Any]:
        """Return the values that ``results.json`` holds."""
        return {name: value for name, value in vars(self).items() if name != "draws"}


@dataclass(frozen=True)
class Row:
    """All seeds of one pretraining at one fraction, under one mode."""

    mode: Mode
    name: str
    fraction: float
    seeds: list[int]
    figures: dict[str, Figure]
    """The figure of each column."""
    hypotheses: list[str]
    """The hypotheses file of each seed, relative to the study's folder."""
