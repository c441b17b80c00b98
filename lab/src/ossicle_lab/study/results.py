"""Compute what ``results.json`` holds: the table of a study with its uncertainty, its settings and their cost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ossicle.evaluate.bootstrap import percentile_interval
from ossicle.train.run_folder import provenance
from ossicle.train.tracking import METRICS_FILE
from ossicle_lab.study.claims import evaluate_claims
from ossicle_lab.study.config import MODES, Mode, to_dict
from ossicle_lab.study.interval import ANSWERS, SET_SIGN, bootstrap, corpus_score, metrics_of, spread
from ossicle_lab.study.job import HYPOTHESES, UTTERANCES, Job
from ossicle_lab.study.normalised import NORMALISED, normalised, references
from ossicle_lab.study.pictures import picture_tokens
from ossicle_lab.study.plan import CellKey, Plan
from ossicle_lab.study.table import Figure, Row

UNSEEN = "unseen"
"""Name of the column with the mean of the unseen tasks' first metrics."""


def collect(plan: Plan) -> dict[str, Any]:
    """Return all results so far. Cells that are not done are missing from the table and counted."""
    bound = _figures(plan, [whole]) if (whole := plan.describe.bound()).is_done() else None
    rows, bound = with_normalised(table(plan), bound, plan)
    keys = plan.cells()
    done = [job for key in keys if (job := plan.cell(key)) is not None and job.is_done()]
    jobs = [job for job in plan.jobs() if job.is_done()]
    return {
        "study": plan.config.name,
        "columns": list(rows[0].figures) if rows else columns(plan),
        "cells": {"done": len(done), "of": len(keys)},
        "rows": [
            {**{k: v for k, v in vars(row).items() if k != "figures"}, "scores": _plain(row.figures)} for row in rows
        ],
        "bound": None if bound is None else _plain(bound),
        "claims": [asdict(claim) for claim in evaluate_claims(rows, plan.config.claim, plan.data.tasks)],
        "settings": _settings(plan),
        "alignment": _alignment(plan),
        "tokens": picture_tokens(plan),
        "curves": _curves(plan),
        "process_seconds": sum(job.record()["seconds"] for job in jobs),
        "config": to_dict(plan.config),
        "provenance": provenance(),
    }


def table(plan: Plan) -> list[Row]:
    """Return the rows of which at least one seed is done."""
    groups: dict[tuple[Mode, str, float], list[CellKey]] = {}
    for key in plan.cells():
        groups.setdefault((key.mode, key.name, key.fraction), []).append(key)
    rows = []
    for (mode, name, fraction), keys in groups.items():
        done = [(key.seed, job) for key in keys if (job := plan.cell(key)) is not None and job.is_done()]
        if done:
            jobs = [job for _, job in done]
            files = [str((job.folder / HYPOTHESES).relative_to(plan.folder)) for job in jobs]
            rows.append(Row(mode, name, fraction, [seed for seed, _ in done], _figures(plan, jobs), files))
    return rows


def with_normalised(
    rows: list[Row], bound: dict[str, Figure] | None, plan: Plan
) -> tuple[list[Row], dict[str, Figure] | None]:
    """Return rows and bound with the column `NORMALISED` after the trained tasks if its references are known."""
    zero = plan.config.normalise
    lower = next((row.figures for row in rows if (row.name, row.fraction) == (zero.lower, zero.fraction)), None)
    scales = references(lower, bound, plan.data.tasks)
    if scales is None:
        return rows, bound

    def extended(figures: dict[str, Figure]) -> dict[str, Figure]:
        trained = {column: figure for column, figure in figures.items() if column.partition(":")[0] in plan.data.tasks}
        return {**trained, NORMALISED: _figure(*normalised(figures, scales)), **figures}

    return [replace(row, figures=extended(row.figures)) for row in rows], None if bound is None else extended(bound)


def columns(plan: Plan) -> list[str]:
    """Return the columns of the trained tasks, of the mean over unseen tasks, and of each unseen task."""
    tasks = [f"{task}:{metric}" for task in plan.data.tasks for metric in metrics_of(task)]
    unseen = _unseen_columns(plan)
    return [*tasks, *([UNSEEN] if unseen else []), *unseen]


def _unseen_columns(plan: Plan) -> list[str]:
    metrics = {task: metrics_of(task) for task in plan.data.unseen}
    chosen = plan.data.unseen_metric
    return [f"{task}:{chosen if every == ANSWERS else every[0]}" for task, every in metrics.items()]


def _figures(plan: Plan, jobs: Sequence[Job]) -> dict[str, Figure]:
    """Return the figure of each column, averaged over ``jobs``, and those of single test sets at the end."""
    counts = [json.loads((job.folder / UTTERANCES).read_text()) for job in jobs]
    found: dict[str, Figure] = {}
    sets = [column for column in counts[0] if SET_SIGN in column and all(column in count for count in counts)]
    for column in [*columns(plan), *sets]:
        if column != UNSEEN:
            task, _, metric = column.partition(":")
            runs = [np.asarray(count[column]) for count in counts]
            values = (
                [corpus_score(metric, run.sum(0)) for run in runs]
                if column in sets
                else [job.record()["scores"][task][metric] for job in jobs]
            )
            found[column] = _figure(values, bootstrap(metric, runs))
    if plan.data.unseen:
        parts = [found[column] for column in _unseen_columns(plan)]
        means = [sum(seed) / len(parts) for seed in zip(*(part.values for part in parts), strict=True)]
        found[UNSEEN] = _figure(means, np.mean([part.draws for part in parts], axis=0))
    return {column: found[column] for column in [*columns(plan), *sets]}


def _figure(values: list[float], draws: NDArray[np.float64]) -> Figure:
    (mean, sd), interval = spread(values), percentile_interval(draws)
    return Figure(mean, sd, interval.low, interval.high, values, draws)


def _plain(figures: dict[str, Figure]) -> dict[str, Any]:
    return {column: figure.without_draws() for column, figure in figures.items()}


def _settings(plan: Plan) -> dict[str, Any]:
    """Return for each row the trials on the development split, the settings used and the time of a step."""
    found: dict[str, Any] = {}
    for name in plan.config.pretraining:
        used = {mode: plan.setting(mode, name) for mode in MODES if plan.config.fractions(mode)}
        trials = [{**asdict(setting), "development_score": score} for setting, score in plan.choices.trials(name)]
        start = plan.first_start(name)
        found[name] = {
            "used": {mode: None if setting is None else asdict(setting) for mode, setting in used.items()},
            "trials": trials,
            "plateau": {
                f"{fraction:g}": [
                    {"steps": steps, "development_score": score}
                    for steps, score in plan.choices.plateau(name, fraction)
                ]
                for fraction in plan.config.pretraining[name].plateau
            },
            "cost_s_per_step": start.record()["cost_s_per_step"] if start is not None and start.is_done() else None,
        }
    return found


def _alignment(plan: Plan) -> dict[str, list[dict[str, Any]]]:
    """Return retrieval by layer after stage 1 of the same steps: the mean over the seeds that are done."""
    found = {}
    for name in plan.config.pretraining:
        jobs = [plan.start("steps", name, seed) for seed in plan.config.seeds_of(name)]
        runs = [job.record()["alignment"] for job in jobs if job is not None and job.alignment and job.is_done()]
        if runs:
            found[name] = [
                {field: _mean([row[field] for row in rows]) for field in rows[0]} for rows in zip(*runs, strict=True)
            ]
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean, or None if a value is None because it could not be measured."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _curves(plan: Plan) -> dict[str, dict[str, str]]:
    """Return the ``metrics.jsonl`` of the first seed, for each stage 1 and for each stage 2 with the most data."""
    curves: dict[str, dict[str, str]] = {"stage 1": {}, "stage 2": {}}
    most = max(plan.config.fractions("steps"), default=None)
    for name in plan.config.pretraining:
        key = None if most is None else CellKey("steps", name, most, plan.config.seeds_of(name)[0])
        cell = None if key is None else plan.cell(key)
        for stage, job in (("stage 1", plan.first_start(name)), ("stage 2", cell)):
            if job is not None and job.is_done():
                curves[stage][name] = str((job.run_folder / METRICS_FILE).relative_to(plan.folder))
    return curves
