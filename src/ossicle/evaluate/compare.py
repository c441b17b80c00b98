"""Compare runs: paired differences, the spread over seeds, and the paper's normalised average."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ossicle.errors import ConfigError, HypothesesError
from ossicle.evaluate.bootstrap import Interval, Paired, paired, percentile_interval, resample
from ossicle.evaluate.hypotheses import Hypothesis
from ossicle.evaluate.parts import Floats, Parts
from ossicle.evaluate.score import Row, ScoredGroup, ScoreOptions, resampling_units

TASK_METRICS: dict[str, tuple[str, ...]] = {"asr": ("wer", "cer"), "st": ("comet", "bleu"), "qa": ("f1",)}
"""Task -> candidate metrics of the normalised average; the first that all three runs have is used."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Difference between two runs on one task and pair of languages."""

    task: str
    language: str | None
    target_language: str | None
    n: int
    """Lines that both runs have."""
    only_in_one: int
    """Lines left out because one of the runs lacks them."""
    units: str
    """Resampled units, e.g. ``12 speakers``."""
    metrics: dict[str, Paired]
    """Metric name -> second run minus first, for the metrics that have `Parts`."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean and standard deviation of one metric over runs that differ only in their seed."""

    task: str
    language: str | None
    target_language: str | None
    metric: str
    mean: float
    sd: float
    """Sample standard deviation (n - 1)."""
    seeds: int
    """Number of runs."""


@dataclass(frozen=True)
class NormalisedAverage:
    """Position of a run between two reference runs: 0 is the lower run and 100 the upper."""

    value: float
    """Mean over the tasks."""
    tasks: dict[str, float]
    """Task and metric, e.g. ``asr/wer`` -> position for this task."""
    interval: Interval | None = None
    """95% interval of the run; the scores of the reference runs are taken as fixed."""


def compare(
    first: Sequence[ScoredGroup], second: Sequence[ScoredGroup], options: ScoreOptions | None = None
) -> list[Difference]:
    """Return ``second`` minus ``first`` for each task and pair of languages that both runs have.

    Raises:
        HypothesesError: the runs have no line in common, or a line has different references in the two runs.
    """
    options = options or ScoreOptions()
    others = {group.lines[0].group: group for group in second}
    both = [(group, others[name]) for group in first if (name := group.lines[0].group) in others]
    found = [
        _difference(mine, other, rows, options)
        for mine, other in both
        if (rows := _common_rows(mine.lines, other.lines))
    ]
    if not found:
        places = " and ".join(run[0].lines[0].source for run in (first, second))
        raise HypothesesError(
            f"{places}: these files have no line in common (same id, task, languages and instruction); "
            "decode the same manifest with both models"
        )
    return found


def spread_over_seeds(runs: Sequence[Sequence[Row]]) -> list[Spread]:
    """Return mean and standard deviation of every score over runs that differ only in their seed.

    Raises:
        ConfigError: there are fewer than two runs.
        HypothesesError: the runs have different tasks or numbers of lines.
    """
    if len(runs) < 2:
        raise ConfigError("a spread over seeds needs at least two runs: give more files")
    shapes = [[(row.task, row.language, row.target_language, row.n) for row in rows] for rows in runs]
    for number, shape in enumerate(shapes[1:], start=2):
        if shape != shapes[0]:
            raise HypothesesError(
                f"run {number} holds {shape}, but run 1 {shapes[0]}: decode the same lines in all runs"
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
    """Return the paper's summary: the mean over ASR, ST and QA of (score - lower) / (upper - lower), in percent.

    A task with several pairs of languages counts once, with the mean of its scores. Error rates need no change of
    sign, because it cancels in the fraction. The value can be below 0 or above 100.

    Raises:
        HypothesesError: a run lacks one of the tasks, or the reference runs have the same score in one.
    """
    tasks = {}
    for task, names in TASK_METRICS.items():
        each = [_task_scores(rows, task) for rows in (run, lower, upper)]
        metric = next((name for name in names if all(name in scores for scores in each)), None)
        if metric is None:
            raise HypothesesError(
                f"the normalised average needs {' or '.join(names)} of task {task!r} in the run and both references"
            )
        mine, low, high = (scores[metric] for scores in each)
        if low == high:
            raise HypothesesError(
                f"{metric} is {low:.2f} in both reference runs: choose other runs for the normalised average"
            )
        tasks[f"{task}/{metric}"] = 100 * (mine - low) / (high - low)
    return NormalisedAverage(statistics.mean(tasks.values()), tasks)


def normalised_interval(
    run: Sequence[ScoredGroup],
    average: NormalisedAverage,
    references: tuple[Sequence[Row], Sequence[Row]],
    options: ScoreOptions | None = None,
) -> Interval | None:
    """Return the interval of a run's normalised average; None if there is only one unit.

    All tasks are resampled together: an utterance or speaker that several tasks share is drawn for all of them.
    """
    options = options or ScoreOptions()
    groups = [
        (key, group) for key in average.tasks for group in run if group.lines[0].group[0] == key.partition("/")[0]
    ]
    units, _ = resampling_units([line for _, group in groups for line in group.lines])
    scored = [group.scores[key.partition("/")[2]].parts for key, group in groups]
    parts = [each for each in scored if each is not None]
    if len(set(units)) < 2 or options.resamples == 0 or len(parts) < len(scored):
        return None
    drawn = _resample_together(parts, units, options)  # (groups, R)
    values = []
    for key in average.tasks:
        task, _, metric = key.partition("/")
        low, high = (_task_scores(rows, task)[metric] for rows in references)
        mine = np.mean([row for (name, _), row in zip(groups, drawn, strict=True) if name == key], axis=0)
        values.append(100 * (mine - low) / (high - low))
    return percentile_interval(np.mean(values, axis=0)) if drawn.shape[1] else None


def _resample_together(parts: Sequence[Parts], units: Sequence[str], options: ScoreOptions) -> Floats:
    """Return the values of all groups (groups, R) when their units are drawn as one set.

    ``units`` lists the units of all groups one after the other. Resamples that hold no line of some group are left out,
    because that group has no score in them.
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


def _common_rows(mine: Sequence[Hypothesis], other: Sequence[Hypothesis]) -> list[tuple[int, int]]:
    """Return the positions of the common lines in both runs, in the order of the first."""
    places = {line.key: place for place, line in enumerate(other)}
    found = [(place, places[line.key]) for place, line in enumerate(mine) if line.key in places]
    for place, twin in found:
        if mine[place].references != other[twin].references:
            raise HypothesesError(
                f"{other[twin].source}: other references than {mine[place].source}; give both files the same ones"
            )
    return found


def _difference(
    mine: ScoredGroup, other: ScoredGroup, rows: Sequence[tuple[int, int]], options: ScoreOptions
) -> Difference:
    names = [name for name in mine.scores if name in other.scores]
    parts = {
        name: (_select(ours, [row for row, _ in rows]), _select(theirs, [row for _, row in rows]))
        for name in names
        if (ours := mine.scores[name].parts) is not None and (theirs := other.scores[name].parts) is not None
    }
    first, second = [pair[0] for pair in parts.values()], [pair[1] for pair in parts.values()]
    units, description = resampling_units([mine.lines[row] for row, _ in rows])
    found = paired(first, second, units, resamples=options.resamples, seed=options.seed)
    task, language, target = mine.lines[0].group
    return Difference(
        task=task,
        language=language or None,
        target_language=target or None,
        n=len(rows),
        only_in_one=len(mine.lines) + len(other.lines) - 2 * len(rows),
        units=description,
        metrics=dict(zip(parts, found, strict=True)),
    )


def _select(parts: Parts, rows: Sequence[int]) -> Parts:
    return replace(parts, counts=parts.counts[rows])


def _task_scores(rows: Sequence[Row], task: str) -> Mapping[str, float]:
    """Return metric -> mean over the languages of a task, without metrics that some language lacks."""
    scores = [row.scores for row in rows if row.task == task]
    names = [name for name in (scores[0] if scores else {}) if all(name in each for each in scores)]
    return {name: statistics.mean(each[name] for each in scores) for name in names}
