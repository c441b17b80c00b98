"""Uncertainty of a study's figures: mean and standard deviation over seeds, percentile bootstrap over utterances.

What a cell keeps are the counts that `ossicle.evaluate.parts` sums, so that nothing is scored twice.

Shape legend: N utterances, K counts that a metric sums, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from ossicle.evaluate.bootstrap import RESAMPLES, resample
from ossicle.evaluate.metrics import bleu, exact_match, f1, wer
from ossicle.evaluate.parts import Floats, Metric, Parts, bleu_value, mean_value, rate_value
from ossicle.evaluate.score import Hypothesis
from ossicle.prompts import task_key

METRICS: dict[str, tuple[Metric, Callable[[Floats], Floats]]] = {
    "wer": (wer, rate_value),
    "bleu": (bleu, bleu_value),
    "em": (exact_match, mean_value),
    "f1": (f1, mean_value),
}
"""How utterances are counted, and what summed counts are worth."""


def metrics_of(task: str) -> tuple[str, ...]:
    """The metrics of a task's columns, the first of which decides: ``asr``, ``st/de``, ``qa``, or any other."""
    kind = task.partition("/")[0]
    return {"asr": ("wer",), "st": ("bleu",), "qa": ("f1", "em")}.get(kind, ("em",))


def column_of(task: str) -> str:
    """Name of the column that stands for a task, such as ``st/de:bleu``."""
    return f"{task}:{metrics_of(task)[0]}"


def utterance_counts(lines: Sequence[Hypothesis]) -> dict[str, list[list[float]]]:
    """Column -> what each utterance adds to the metric's sums, (N, K); lines are taken in the order of their ids."""
    by_task: dict[str, list[Hypothesis]] = {}
    for line in sorted(lines, key=lambda line: line.id):
        task = line.task or "asr"
        by_task.setdefault(task_key(task, line.target_language), []).append(line)
    return {
        f"{task}:{metric}": _counts(METRICS[metric][0], group)
        for task, group in by_task.items()
        for metric in metrics_of(task)
    }


def corpus_score(metric: str, sums: np.ndarray) -> float:
    """The score in percent of summed counts (K,)."""
    return float(METRICS[metric][1](np.asarray(sums, dtype=float)[None])[0])


def bootstrap(metric: str, runs: Sequence[np.ndarray], *, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Scores (R,) of ``resamples`` draws of N utterances with replacement, averaged over ``runs`` (each (N, K)).

    The runs (seeds of one row of the table) are scored on the same draws, and every call with the same N and seed
    draws the same: the difference of two results is a paired bootstrap. Raises `ValueError` for runs of other lengths.
    """
    if len({len(run) for run in runs}) != 1:
        raise ValueError(f"runs of {sorted({len(run) for run in runs})} utterances cannot be resampled together")
    parts = [Parts(np.asarray(run, dtype=float), METRICS[metric][1]) for run in runs]
    return resample(parts, range(len(runs[0])), resamples=resamples, seed=seed).mean(0)


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation over seeds; None for a single one."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return mean, None
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _counts(metric: Metric, lines: Sequence[Hypothesis]) -> list[list[float]]:
    target = lines[0].target_language
    score = metric([line.hypothesis for line in lines], [line.references for line in lines], target)
    if score.parts is None:
        raise ValueError(f"{metric} keeps no counts of utterances to draw from")
    counts: list[list[float]] = score.parts.counts.tolist()
    return counts
