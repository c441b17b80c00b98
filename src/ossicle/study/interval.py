"""Uncertainty of a study's figures: mean and standard deviation over seeds, percentile bootstrap over utterances.

Self-contained on purpose, so that another bootstrap can take its place: the rest of the study calls `column_of`,
`utterance_counts`, `bootstrap` and `spread` only.

Shape legend: N utterances, K counts that a metric sums, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sacrebleu.metrics import BLEU

from ossicle.data.prompts import task_key
from ossicle.evaluate.metrics import exact_match, f1, normalise_basic, wer
from ossicle.evaluate.score import Hypothesis

RESAMPLES = 1000
LEVEL = 95.0
NGRAMS = 4


@dataclass(frozen=True)
class Interval:
    """Ends of a 95% interval, in the unit of the score."""

    low: float
    high: float


def metrics_of(task: str) -> tuple[str, ...]:
    """The metrics of a task's columns, the first of which decides: ``asr``, ``st/de``, ``qa``, or any other."""
    kind = task.partition("/")[0]
    return {"asr": ("wer",), "st": ("bleu",), "qa": ("f1", "em")}.get(kind, ("em",))


def column_of(task: str) -> str:
    """Name of the column that stands for a task, such as ``st/de:bleu``."""
    return f"{task}:{metrics_of(task)[0]}"


def utterance_counts(lines: Sequence[Hypothesis]) -> dict[str, list[list[float]]]:
    """Column -> what each utterance adds to the metric's sums, (N, K); lines are taken in the order of their ids.

    WER: errors, words. BLEU: matches and candidates of 1- to 4-grams, lengths said and of the reference. EM, F1: the
    utterance's score, 1. So a corpus-level score of any resample is `corpus_score` of the summed rows.
    """
    by_task: dict[str, list[Hypothesis]] = {}
    for line in sorted(lines, key=lambda line: line.id):
        task = line.task or "asr"
        by_task.setdefault(task_key(task, line.target_language), []).append(line)
    return {
        f"{task}:{metric}": [_counts(metric, line.hypothesis, list(line.references)) for line in group]
        for task, group in by_task.items()
        for metric in metrics_of(task)
    }


def corpus_score(metric: str, sums: np.ndarray) -> float:
    """The score in percent of summed counts (K,)."""
    if metric == "bleu":
        matched, total, (said, wanted) = sums[:NGRAMS], sums[NGRAMS : 2 * NGRAMS], sums[2 * NGRAMS :]
        exact = [[int(x) for x in counts] for counts in (matched, total)]
        found = BLEU.compute_bleu(exact[0], exact[1], int(said), int(wanted), smooth_method="exp")
        return min(float(found.score), 100.0)
    hits, count = sums
    if count == 0:
        return 100.0 if hits else 0.0
    return 100 * float(hits) / float(count)


def bootstrap(metric: str, runs: Sequence[np.ndarray], *, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Scores (R,) of ``resamples`` draws of N utterances with replacement, averaged over ``runs`` (each (N, K)).

    The runs (seeds of one row of the table) are scored on the same draws, and every call with the same N and seed
    draws the same: the difference of two results is a paired bootstrap. Raises `ValueError` for runs of other lengths.
    """
    if len({len(run) for run in runs}) != 1:
        raise ValueError(f"runs of {sorted({len(run) for run in runs})} utterances cannot be resampled together")
    n = len(runs[0])
    weights = np.random.default_rng(seed).multinomial(n, [1 / n] * n, size=resamples)  # (R, N)
    scores = [[corpus_score(metric, sums) for sums in weights @ np.asarray(run, dtype=float)] for run in runs]
    return np.mean(scores, axis=0)


def percentile_interval(draws: np.ndarray) -> Interval:
    """The middle 95% of bootstrap scores (R,)."""
    tail = (100 - LEVEL) / 2
    low, high = np.percentile(draws, [tail, 100 - tail])
    return Interval(float(low), float(high))


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation over seeds; None for a single one."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return mean, None
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _counts(metric: str, said: str, references: list[str]) -> list[float]:
    match metric:
        case "wer":
            return min((_word_errors(said, wanted) for wanted in references), key=lambda e: e[0] / max(e[1], 1))
        case "bleu":
            found = BLEU(effective_order=True).sentence_score(said, references)
            return [*found.counts, *found.totals, found.sys_len, found.ref_len]
        case "em":
            return [exact_match([said], [references]).value / 100, 1]
        case _:
            return [f1([said], [references]).value / 100, 1]


def _word_errors(said: str, wanted: str) -> list[float]:
    words = len(normalise_basic(wanted).split())
    if words == 0:
        return [len(normalise_basic(said).split()), 0]
    return [round(wer([said], [wanted]).value * words / 100), words]
