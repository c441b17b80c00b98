"""Compute the uncertainty of a study's figures: spread over seeds, percentile bootstrap over utterances.

A cell stores the counts that `ossicle.evaluate.parts` sums, so that no utterance is scored twice.

Shape legend: N utterances, K counts that a metric sums, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ossicle.evaluate.bootstrap import RESAMPLES, resample
from ossicle.evaluate.hypotheses import Hypothesis, Key
from ossicle.evaluate.meta import accuracy
from ossicle.evaluate.metrics import bleu, exact_match, f1, wer
from ossicle.evaluate.parts import Floats, Metric, Parts, bleu_value, mean_value, rate_value
from ossicle.prompts import task_key

METRICS: dict[str, tuple[Metric, Callable[[Floats], Floats]]] = {
    "wer": (wer, rate_value),
    "bleu": (bleu, bleu_value),
    "em": (exact_match, mean_value),
    "f1": (f1, mean_value),
    "accuracy": (accuracy, rate_value),
}
"""For each metric: the function that counts utterances, and the one that turns summed counts into a score."""

BY_TASK = {"asr": ("wer",), "st": ("bleu",), "qa": ("f1", "em"), "voice": ("em",), "meta": ("accuracy",)}
"""Metrics of a task, among those that `ossicle.evaluate.metrics` computes for it."""
ANSWERS = ("em", "f1")
"""Metrics of all other tasks."""
SET_SIGN = "@"
"""Sign between a task and one of its test sets in a column, such as ``asr@test-other:wer``."""


def metrics_of(task: str) -> tuple[str, ...]:
    """Return the metrics of a task such as ``asr``, ``st/de`` or ``qa``; the first one decides comparisons.

    Tasks such as ``qa-words`` are questions too.
    """
    kind = task.partition("/")[0].partition("-")[0]
    return BY_TASK.get(kind, ANSWERS)


def column_of(task: str) -> str:
    """Return the column of a task's first metric, such as ``st/de:bleu``."""
    return f"{task}:{metrics_of(task)[0]}"


def utterance_counts(
    lines: Sequence[Hypothesis], sets: Mapping[Key, str] | None = None
) -> dict[str, list[list[float]]]:
    """Return for each column the counts (N, K) of its utterances, in the order of their ids.

    ``sets`` names the test set of each line. A task in several test sets has a column for each of them too.
    """
    by_task: dict[str, list[Hypothesis]] = {}
    by_set: dict[str, dict[str, list[Hypothesis]]] = {}
    for line in sorted(lines, key=lambda line: line.id):
        task = task_key(line.task or "asr", line.target_language)
        by_task.setdefault(task, []).append(line)
        by_set.setdefault(task, {}).setdefault((sets or {}).get(line.key, ""), []).append(line)
    for task, groups in by_set.items():
        by_task |= {f"{task}{SET_SIGN}{name}": group for name, group in sorted(groups.items()) if len(groups) > 1}
    return {
        f"{task}:{metric}": _counts(METRICS[metric][0], group)
        for task, group in by_task.items()
        for metric in metrics_of(task.partition(SET_SIGN)[0])
    }


def corpus_score(metric: str, sums: ArrayLike) -> float:
    """Return the score, in percent, of summed counts (K,)."""
    return float(METRICS[metric][1](np.asarray(sums, dtype=float)[None])[0])


def bootstrap(
    metric: str, runs: Sequence[ArrayLike], *, resamples: int = RESAMPLES, seed: int = 0
) -> NDArray[np.float64]:
    """Return the scores (R,) of ``resamples`` draws of N utterances with replacement, averaged over ``runs``.

    Each run has counts (N, K) and is one seed of a row. All runs are scored on the same draws, which depend on N and
    ``seed`` alone. The difference of two results is therefore a paired bootstrap. Raises `ValueError` if the runs
    differ in length.
    """
    counts = [np.asarray(run, dtype=float) for run in runs]
    lengths = sorted({len(run) for run in counts})
    if len(lengths) != 1:
        raise ValueError(f"runs of {lengths} utterances cannot be resampled together")
    parts = [Parts(run, METRICS[metric][1]) for run in counts]
    drawn: NDArray[np.float64] = resample(parts, range(lengths[0]), resamples=resamples, seed=seed).mean(0)
    return drawn


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Return mean and sample standard deviation over seeds; the latter is None for a single seed."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return mean, None
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _counts(metric: Metric, lines: Sequence[Hypothesis]) -> list[list[float]]:
    target = lines[0].target_language
    score = metric([line.hypothesis for line in lines], [line.references for line in lines], target)
    if score.parts is None:
        raise ValueError(f"{metric} has no counts per utterance to draw from")
    counts: list[list[float]] = score.parts.counts.tolist()
    return counts
