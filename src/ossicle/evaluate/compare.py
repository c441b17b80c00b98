"""Runs beside each other: paired differences, the spread over seeds, and the paper's normalised average."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ossicle.errors import HypothesesError
from ossicle.evaluate.bootstrap import Interval, Paired, interval, paired, resample
from ossicle.evaluate.hypotheses import Hypothesis
from ossicle.evaluate.parts import Floats, Parts
from ossicle.evaluate.score import Row, Scored, ScoreOptions, units_of

TASK_METRICS: dict[str, tuple[str, ...]] = {"asr": ("wer",), "st": ("comet", "bleu"), "qa": ("f1",)}
"""Task -> what the normalised average takes of it: the first of these metrics that all three runs have."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Two runs on the utterances of one task and pair of languages that both have."""

    task: str
    language: str | None
    target_language: str | None
    n: int
    """Utterances in both runs."""
    only_in_one: int
    """Utterances left out, because one of the two runs lacks them."""
    units: str
    metrics: dict[str, Paired]
    """Metric name -> second run minus first, of the metrics that have `Parts`."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """One metric over runs that differ in their seed."""

    task: str
    language: str | None
    target_language: str | None
    metric: str
    mean: float
    sd: float
    """Of the sample (n - 1)."""
    seeds: int


@dataclass(frozen=True)
class NormalisedAverage:
    """Where a run stands between two others, 0 = as the lower, 100 = as the upper."""

    value: float
    tasks: dict[str, float]
    """Task -> its part, and with it the metric: ``asr/wer``."""
    interval: Interval | None = None
    """95%, of the run only: the reference runs are taken as they are."""


def compare(first: Sequence[Scored], second: Sequence[Scored], options: ScoreOptions | None = None) -> list[Difference]:
    """How far the run ``second`` is from ``first``, for each task and pair of languages that both have.

    Raises:
        HypothesesError: the runs have no utterance in common, or other references for the same utterance.
    """
    options = options or ScoreOptions()
    others = {group.lines[0].group: group for group in second}
    both = [(group, others[name]) for group in first if (name := group.lines[0].group) in others]
    found = [
        _difference(mine, other, rows, options) for mine, other in both if (rows := _common(mine.lines, other.lines))
    ]
    if not found:
        places = " and ".join(run[0].lines[0].source for run in (first, second))
        raise HypothesesError(f"{places}: no utterance in common (by id, task, languages, instruction) from there on")
    return found


def over_seeds(runs: Sequence[Sequence[Row]]) -> list[Spread]:
    """Mean and standard deviation of every score over runs that differ in their seed only.

    Raises:
        ValueError: fewer than two runs, or runs that did not decode the same tasks and numbers of utterances.
    """
    if len(runs) < 2:
        raise ValueError("a spread over seeds needs at least two runs: give more files")
    shapes = [[(row.task, row.language, row.target_language, row.n) for row in rows] for rows in runs]
    for number, shape in enumerate(shapes[1:], start=2):
        if shape != shapes[0]:
            raise ValueError(
                f"run {number} holds {shape}, run 1 {shapes[0]}: seeds are compared on the same utterances"
            )
    return [
        Spread(
            task=same[0].task,
            language=same[0].language,
            target_language=same[0].target_language,
            metric=metric,
            mean=statistics.mean(values),
            sd=statistics.stdev(values),
            seeds=len(values),
        )
        for same in zip(*runs, strict=True)
        for metric in same[0].scores
        if (values := [row.scores[metric] for row in same])
    ]


def normalised_average(run: Sequence[Row], lower: Sequence[Row], upper: Sequence[Row]) -> NormalisedAverage:
    """The paper's summary: mean over ASR, ST and QA of (score - lower) / (upper - lower), in percent.

    A task in several pairs of languages counts once, with the mean of its scores. Error rates need no change of sign:
    it cancels in the fraction. A run may well be below 0 or above 100.

    Raises:
        ValueError: a run lacks one of the tasks, or the reference runs do not differ in one.
    """
    tasks = {}
    for task, names in TASK_METRICS.items():
        each = [_of_task(rows, task) for rows in (run, lower, upper)]
        metric = next((name for name in names if all(name in scores for scores in each)), None)
        if metric is None:
            raise ValueError(
                f"the normalised average needs {' or '.join(names)} of task {task!r} in the run and both references"
            )
        mine, low, high = (scores[metric] for scores in each)
        if low == high:
            raise ValueError(f"{metric} is {low:.2f} in both reference runs: choose others for the normalised average")
        tasks[f"{task}/{metric}"] = 100 * (mine - low) / (high - low)
    return NormalisedAverage(statistics.mean(tasks.values()), tasks)


def normalised_interval(
    run: Sequence[Scored],
    average: NormalisedAverage,
    references: tuple[Sequence[Row], Sequence[Row]],
    options: ScoreOptions | None = None,
) -> Interval | None:
    """The interval of a run's normalised average; None where there is one unit only.

    All tasks are resampled together: an utterance or speaker that several tasks share is drawn for all of them.
    """
    options = options or ScoreOptions()
    of_tasks = [
        (key, group) for key in average.tasks for group in run if group.lines[0].group[0] == key.partition("/")[0]
    ]
    units, _ = units_of([line for _, group in of_tasks for line in group.lines])
    scored = [group.scores[key.partition("/")[2]].parts for key, group in of_tasks]
    parts = [each for each in scored if each is not None]
    if len(set(units)) < 2 or options.resamples == 0 or len(parts) < len(scored):
        return None
    drawn = _together(parts, units, options)  # (groups, R)
    values = []
    for key in average.tasks:
        task, _, metric = key.partition("/")
        low, high = (_of_task(rows, task)[metric] for rows in references)
        mine = np.mean([row for (name, _), row in zip(of_tasks, drawn, strict=True) if name == key], axis=0)
        values.append(100 * (mine - low) / (high - low))
    return interval(np.mean(values, axis=0)) if drawn.shape[1] else None


def _together(parts: Sequence[Parts], units: Sequence[str], options: ScoreOptions) -> Floats:
    """Values of groups of lines (groups, R) when their units are drawn as one set; ``units`` holds those of all groups.

    Resamples without a line of some group say nothing about it, and are left out.
    """
    padded, start = [], 0
    for each in parts:
        rows = slice(start, start + len(each.counts))
        counts, inside = np.zeros((len(units), each.counts.shape[1])), np.zeros((len(units), 1))
        counts[rows], inside[rows] = each.counts, 1
        padded += [replace(each, counts=counts), Parts(inside, lambda sums: sums[:, 0])]
        start = rows.stop
    drawn = resample(padded, units, resamples=options.resamples, seed=options.seed)
    return drawn[::2, (drawn[1::2] > 0).all(axis=0)]


def _common(mine: Sequence[Hypothesis], other: Sequence[Hypothesis]) -> list[tuple[int, int]]:
    """Where the same utterances stand in both runs, in the order of the first."""
    places = {line.key: place for place, line in enumerate(other)}
    found = [(place, places[line.key]) for place, line in enumerate(mine) if line.key in places]
    for place, twin in found:
        if mine[place].references != other[twin].references:
            raise HypothesesError(
                f"{other[twin].source}: other references than {mine[place].source}: both must be judged alike"
            )
    return found


def _difference(mine: Scored, other: Scored, rows: Sequence[tuple[int, int]], options: ScoreOptions) -> Difference:
    names = [name for name in mine.scores if name in other.scores]
    parts = {
        name: (_rows_of(ours, [row for row, _ in rows]), _rows_of(theirs, [row for _, row in rows]))
        for name in names
        if (ours := mine.scores[name].parts) is not None and (theirs := other.scores[name].parts) is not None
    }
    first, second = [pair[0] for pair in parts.values()], [pair[1] for pair in parts.values()]
    units, described = units_of([mine.lines[row] for row, _ in rows])
    found = paired(first, second, units, resamples=options.resamples, seed=options.seed)
    task, language, target = mine.lines[0].group
    return Difference(
        task=task,
        language=language or None,
        target_language=target or None,
        n=len(rows),
        only_in_one=len(mine.lines) + len(other.lines) - 2 * len(rows),
        units=described,
        metrics=dict(zip(parts, found, strict=True)),
    )


def _rows_of(parts: Parts, rows: Sequence[int]) -> Parts:
    return replace(parts, counts=parts.counts[rows])


def _of_task(rows: Sequence[Row], task: str) -> Mapping[str, float]:
    """Metric -> mean over the languages of a task; a metric that some language lacks is left out."""
    scores = [row.scores for row in rows if row.task == task]
    names = [name for name in (scores[0] if scores else {}) if all(name in each for each in scores)]
    return {name: statistics.mean(each[name] for each in scores) for name in names}
