"""``results.json``: the table of a study with its uncertainty, its settings, and what they cost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ossicle.evaluate.bootstrap import interval as interval_of
from ossicle.train.tracking import provenance
from ossicle_lab.study.claims import evaluate_claims
from ossicle_lab.study.config import MODES, Mode, to_dict
from ossicle_lab.study.interval import bootstrap, column_of, metrics_of, spread
from ossicle_lab.study.job import HYPOTHESES, UTTERANCES, Job
from ossicle_lab.study.normalised import NORMALISED, normalised, references
from ossicle_lab.study.pictures import picture_tokens
from ossicle_lab.study.plan import CellKey, Plan

UNSEEN = "unseen"
"""Column: the mean of the unseen tasks' first metrics."""


@dataclass(frozen=True)
class Figure:
    """A score with its uncertainty, in percent."""

    mean: float
    """Over seeds."""
    sd: float | None
    """Over seeds; None for a single one."""
    low: float
    """Of the 95% bootstrap interval over utterances, of the mean over seeds."""
    high: float
    values: list[float]
    """One for each seed."""
    draws: np.ndarray
    """(R,) bootstrap scores of the mean; pairs with those of other figures of the same column. Not in the file."""

    def plain(self) -> dict[str, Any]:
        """Without the draws."""
        return {name: value for name, value in vars(self).items() if name != "draws"}


@dataclass(frozen=True)
class Row:
    """All seeds of one pretraining at one fraction, under one mode."""

    mode: Mode
    name: str
    fraction: float
    seeds: list[int]
    figures: dict[str, Figure]
    """Column -> figure."""
    hypotheses: list[str]
    """Files of the seeds."""


def collect(plan: Plan) -> dict[str, Any]:
    """Everything that is known so far; cells that are not done are counted, not guessed."""
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
    """The rows of which at least one seed is done."""
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
    """The rows and the bound with a column `NORMALISED` after the trained tasks, where its references are known."""
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
    """The columns of the table that single tasks and the unseen ones fill, in order."""
    tasks = [f"{task}:{metric}" for task in plan.data.tasks for metric in metrics_of(task)]
    unseen = [column_of(task) for task in plan.data.unseen]
    return [*tasks, *([UNSEEN] if unseen else []), *unseen]


def _figures(plan: Plan, jobs: Sequence[Job]) -> dict[str, Figure]:
    counts = [json.loads((job.folder / UTTERANCES).read_text()) for job in jobs]
    found: dict[str, Figure] = {}
    for column in columns(plan):
        if column != UNSEEN:
            task, _, metric = column.partition(":")
            values = [job.record()["scores"][task][metric] for job in jobs]
            found[column] = _figure(values, bootstrap(metric, [np.asarray(count[column]) for count in counts]))
    if plan.data.unseen:
        parts = [found[column_of(task)] for task in plan.data.unseen]
        means = [sum(seed) / len(parts) for seed in zip(*(part.values for part in parts), strict=True)]
        found[UNSEEN] = _figure(means, np.mean([part.draws for part in parts], axis=0))
    return {column: found[column] for column in columns(plan)}


def _figure(values: list[float], draws: np.ndarray) -> Figure:
    (mean, sd), interval = spread(values), interval_of(draws)
    return Figure(mean, sd, interval.low, interval.high, values, draws)


def _plain(figures: dict[str, Figure]) -> dict[str, Any]:
    return {column: figure.plain() for column, figure in figures.items()}


def _settings(plan: Plan) -> dict[str, Any]:
    """For each row: what was tried on the development split, what was used, and what a step cost."""
    found: dict[str, Any] = {}
    for name in plan.config.pretraining:
        used = {mode: plan.setting(mode, name) for mode in MODES if plan.config.fractions(mode)}
        trials = [{**asdict(setting), "development_score": score} for setting, score in plan.choices.trials(name)]
        start = plan.first_start(name)
        done = start is not None and start.is_done()
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
            "cost_s_per_step": start.record()["cost_s_per_step"] if start is not None and done else None,
        }
    return found


def _alignment(plan: Plan) -> dict[str, list[dict[str, Any]]]:
    """Retrieval by layer after stage 1 of the same steps: the mean over the seeds that are done."""
    found = {}
    for name in plan.config.pretraining:
        jobs = [plan.start("steps", name, seed) for seed in plan.config.seeds_of(name)]
        runs = [job.record()["alignment"] for job in jobs if job is not None and job.alignment and job.is_done()]
        if runs:
            found[name] = [
                {field: sum(row[field] for row in rows) / len(rows) for field in rows[0]}
                for rows in zip(*runs, strict=True)
            ]
    return found


def _curves(plan: Plan) -> dict[str, dict[str, str]]:
    """The ``metrics.jsonl`` of the first seed: of each stage 1, and of stage 2 with the most data."""
    curves: dict[str, dict[str, str]] = {"stage 1": {}, "stage 2": {}}
    most = max(plan.config.fractions("steps"), default=None)
    for name in plan.config.pretraining:
        key = None if most is None else CellKey("steps", name, most, plan.config.seeds_of(name)[0])
        cell = None if key is None else plan.cell(key)
        for stage, job in (("stage 1", plan.first_start(name)), ("stage 2", cell)):
            if job is not None and job.is_done():
                curves[stage][name] = str(_metrics(job).relative_to(plan.folder))
    return curves


def _metrics(job: Job) -> Path:
    from ossicle.train.tracking import METRICS_FILE

    return job.run_folder / METRICS_FILE
