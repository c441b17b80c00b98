"""The live table of a study: a status for each cell, and the time left from what was measured so far."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ossicle.train.tracking import METRICS_FILE, read_metrics
from ossicle_lab.study.config import MODE_NAMES
from ossicle_lab.study.interval import column_of
from ossicle_lab.study.job import Job
from ossicle_lab.study.plan import CellKey, Plan

WAITING, TRIED, FAILED = "·", "…", "✗"
LINES_SHOWN = 3


class Watch:
    """A table on a terminal; elsewhere a line for each job that ends."""

    def __init__(self, plan: Plan, console: Console, processes: int) -> None:
        self.plan, self.console, self.processes = plan, console, processes
        self.running: dict[Path, Job] = {}
        self.failed: dict[Path, str] = {}
        self.jobs: list[Job] = []
        self.started_s = time.perf_counter()
        self._cells = {key: plan.cell(key) for key in plan.cells()}
        self._records: dict[Path, dict[str, Any]] = {}
        self._live = Live(console=console, get_renderable=self.render, refresh_per_second=1, transient=False)

    def __enter__(self) -> Watch:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self._live.stop()

    def update(self, jobs: list[Job], running: Iterable[Job], failed: Mapping[Path, str]) -> None:
        """What is to be done, what runs, and what failed with which message."""
        self.jobs, self.running, self.failed = jobs, {job.folder: job for job in running}, dict(failed)
        self._cells = {key: self.plan.cell(key) for key in self._cells}

    def say_done(self, job: Job, seconds: float) -> None:
        """One line, where there is no table."""
        if not self.console.is_terminal:
            line = f"  {job.label}: {seconds:.0f} s  [{self.summary()}]"
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def summary(self) -> str:
        """Cells done, and the time left."""
        done = sum(job is not None and job.is_done() for job in self._cells.values())
        left = self.seconds_left()
        eta = "" if not left else f", about {_duration(left)} left"
        return f"{done} of {len(self._cells)} cells{eta}"

    def seconds_left(self) -> float | None:
        """From the mean time of jobs of the same kind; None before the first one is measured."""
        costs = Costs(self._record(job) | {"job": job} for job in self.jobs if job.is_done())
        pending = {job.folder: job for job in self.jobs if not job.is_done()}
        unknown = [key for key, job in self._cells.items() if job is None]
        seconds = [costs.of(job) for job in pending.values()] + [costs.of_cell(key.fraction) for key in unknown]
        known = [value for value in seconds if value is not None]
        if not known:
            return None if seconds else 0.0
        total = sum(known) / len(known) * len(seconds)  # what is not known yet costs what the others do
        spared = sum((costs.of(job) or 0.0) * _progress(job) for job in self.running.values())
        return max(total - spared, 0.0) / self.processes

    def render(self) -> RenderableType:
        """The table, and what runs now."""
        modes = dict.fromkeys(key.mode for key in self._cells)
        tables = [self._table(mode) for mode in modes]
        busy = [f"{job.label}  {_progress(job):.0%}" for job in self.running.values()]
        broken = [f"{FAILED} {message}" for message in self.failed.values()]
        elapsed = _duration(time.perf_counter() - self.started_s)
        lines = [f"{self.summary()}; {elapsed} so far", *busy, *broken[-LINES_SHOWN:]]
        return Group(*tables, Text("\n".join(lines), style="dim"))

    def _table(self, mode: str) -> Table:
        keys = [key for key in self._cells if key.mode == mode]
        column = column_of(self.plan.data.tasks[min(1, len(self.plan.data.tasks) - 1)])
        table = Table(title=f"{self.plan.config.name}: {MODE_NAMES[mode]}, {column}", box=box.SIMPLE)
        table.add_column("pretraining", no_wrap=True)
        fractions = sorted({key.fraction for key in keys})
        for fraction in fractions:
            table.add_column(f"{fraction:.3g}", justify="right", no_wrap=True)
        for name in dict.fromkeys(key.name for key in keys):
            cells = [
                " ".join(self._status(key, column) for key in keys if (key.name, key.fraction) == (name, fraction))
                for fraction in fractions
            ]
            table.add_row(name, *cells)
        return table

    def _status(self, key: CellKey, column: str) -> str:
        """A score when done, a percentage while it runs, else a mark."""
        job = self._cells[key]
        if job is None:
            return TRIED
        if job.is_done():
            task, _, metric = column.partition(":")
            return f"{self._record(job)['scores'][task][metric]:.1f}"
        if job.folder in self.running:
            return f"{_progress(job):.0%}"
        return FAILED if job.folder in self.failed or job.start in self.failed else WAITING

    def _record(self, job: Job) -> dict[str, Any]:
        return self._records.setdefault(job.folder, job.record())


class Costs:
    """What jobs took: by the kind and the key that they share, else by the kind alone."""

    def __init__(self, records: Iterable[Mapping[str, Any]]) -> None:
        self._per_step: dict[tuple[str, str], list[float]] = {}
        self._cells: list[float] = []
        for record in records:
            job: Job = record["job"]
            value = record["seconds"] / max(job.steps, 1)
            for key in ((job.kind, job.cost_key), (job.kind, "")):
                self._per_step.setdefault(key, []).append(value)
            if job.kind == "cell":
                self._cells.append(record["seconds"])

    def of(self, job: Job) -> float | None:
        """Seconds of a job that is still to be done, if anything like it was measured."""
        for key in ((job.kind, job.cost_key), (job.kind, "")):
            if values := self._per_step.get(key):
                return sum(values) / len(values) * max(job.steps, 1)
        return None

    def of_cell(self, fraction: float) -> float | None:
        """Seconds of a cell of which only the column is known: as the others on average."""
        return sum(self._cells) / len(self._cells) if self._cells else None


def cores() -> int:
    """Processes that run side by side if nothing else is said."""
    return os.cpu_count() or 1


def _progress(job: Job) -> float:
    """Share of its training steps that a running job has taken."""
    path = job.run_folder / METRICS_FILE
    records = read_metrics(path) if path.is_file() else []
    return min(1.0, max((record["step"] for record in records), default=0) / max(job.steps, 1))


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"
