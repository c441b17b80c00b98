"""Show how far a study is: a table with a status for each cell on a terminal, lines elsewhere, with the time left."""

from __future__ import annotations

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

from ossicle.progress import LINE_EVERY_S
from ossicle.train.tracking import METRICS_FILE, read_metrics
from ossicle_lab.study.config import MODE_NAMES
from ossicle_lab.study.interval import column_of
from ossicle_lab.study.job import Job
from ossicle_lab.study.plan import CellKey, Plan

WAITING, UNDECIDED, FAILED = "·", "…", "✗"
FAILURES_SHOWN = 3


class Watch:
    """Shows a table on a terminal; elsewhere prints a line for each job that ends and one every half minute."""

    def __init__(self, plan: Plan, console: Console, processes: int) -> None:
        self.plan, self.console, self.processes = plan, console, processes
        self.running: dict[Path, Job] = {}
        self.failed: dict[Path, str] = {}
        self.jobs: list[Job] = []
        self.started_s = self._last_line_s = time.perf_counter()
        self._begun: dict[Path, tuple[float, float]] = {}  # when a running job was first seen, and its progress then
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
        """Set all jobs, those that run, and the messages of those that failed."""
        self.jobs, self.running, self.failed = jobs, {job.folder: job for job in running}, dict(failed)
        self._cells = {key: self.plan.cell(key) for key in self._cells}
        for job in self.running.values():
            if job.folder not in self._begun:
                self._begun[job.folder] = (time.perf_counter(), progress(job))

    def tick(self) -> None:
        """Print a line with the progress of all running jobs where there is no table, at most every half minute."""
        if self.console.is_terminal or time.perf_counter() - self._last_line_s < LINE_EVERY_S:
            return
        running = [f"{job.label}: {self._steps(job)}" for job in self.running.values()]
        self._print("; ".join([self.summary(), *running]))

    def say_done(self, job: Job, seconds: float) -> None:
        """Print a line about a job that ended where there is no table."""
        if not self.console.is_terminal:
            self._print(f"  {job.label}: {seconds:.0f} s  [{self.summary()}]")

    def summary(self) -> str:
        """Return the number of cells done and the time left."""
        done = sum(job is not None and job.is_done() for job in self._cells.values())
        left = self.seconds_left()
        eta = "" if not left else f", about {_duration(left)} left"
        return f"{done} of {len(self._cells)} cells{eta}"

    def seconds_left(self) -> float | None:
        """Return an estimate of the time left, or None before a job was measured.

        A job takes the mean time of jobs of its kind. If there is none, the speed of the running job counts.
        """
        costs = Costs((job, self._record(job)["seconds"]) for job in self.jobs if job.is_done())
        pending = {job.folder: job for job in self.jobs if not job.is_done()}
        estimates = {folder: self._estimate(costs, job) for folder, job in pending.items()}
        undecided = [costs.of_cell() for job in self._cells.values() if job is None]
        seconds = [*estimates.values(), *undecided]
        known = [value for value in seconds if value is not None]
        if not known:
            return None if seconds else 0.0
        total = sum(known) / len(known) * len(seconds)  # jobs without an estimate take as long as the others
        spared = sum((estimates.get(folder) or 0.0) * progress(job) for folder, job in self.running.items())
        return max(total - spared, 0.0) / self.processes

    def render(self) -> RenderableType:
        """Return the table, the running jobs and the last failures."""
        modes = dict.fromkeys(key.mode for key in self._cells)
        tables = [self._table(mode) for mode in modes]
        busy = [f"{job.label}  {self._steps(job)}" for job in self.running.values()]
        broken = [f"{FAILED} {message}" for message in self.failed.values()]
        elapsed = _duration(time.perf_counter() - self.started_s)
        lines = [f"{self.summary()}; {elapsed} elapsed", *busy, *broken[-FAILURES_SHOWN:]]
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
        """Return the score of a cell that is done, the percentage of one that runs, or a mark."""
        job = self._cells[key]
        if job is None:
            return UNDECIDED
        if job.is_done():
            task, _, metric = column.partition(":")
            return f"{self._record(job)['scores'][task][metric]:.1f}"
        if job.folder in self.running:
            return f"{progress(job):.0%}"
        return FAILED if job.folder in self.failed or job.start in self.failed else WAITING

    def _estimate(self, costs: Costs, job: Job) -> float | None:
        """Return the seconds that a whole job takes, or None if nothing like it was measured."""
        known = costs.of(job)
        if known is not None or job.folder not in self.running:
            return known
        begun_s, first = self._begun[job.folder]
        gained = progress(job) - first
        return (time.perf_counter() - begun_s) / gained if gained > 0 else None

    def _steps(self, job: Job) -> str:
        return f"step {progress(job) * job.steps:.0f}/{job.steps}" if job.steps else "running"

    def _record(self, job: Job) -> dict[str, Any]:
        return self._records.setdefault(job.folder, job.record())

    def _print(self, line: str) -> None:
        self._last_line_s = time.perf_counter()
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


class Costs:
    """Mean seconds per step of finished jobs with the same kind and key, or of the same kind if there is none."""

    def __init__(self, done: Iterable[tuple[Job, float]]) -> None:
        self._per_step: dict[tuple[str, str], list[float]] = {}
        self._cells: list[float] = []
        for job, seconds in done:
            for key in ((job.kind, job.cost_key), (job.kind, "")):
                self._per_step.setdefault(key, []).append(seconds / max(job.steps, 1))
            if job.kind == "cell":
                self._cells.append(seconds)

    def of(self, job: Job) -> float | None:
        """Return the seconds that a job will take, or None if nothing like it was measured."""
        for key in ((job.kind, job.cost_key), (job.kind, "")):
            if values := self._per_step.get(key):
                return sum(values) / len(values) * max(job.steps, 1)
        return None

    def of_cell(self) -> float | None:
        """Return the mean seconds of finished cells, for cells whose settings are not chosen yet."""
        return sum(self._cells) / len(self._cells) if self._cells else None


def progress(job: Job) -> float:
    """Return the share of its training steps that a running job has done."""
    path = job.run_folder / METRICS_FILE
    records = read_metrics(path) if path.is_file() else []
    return min(1.0, max((record["step"] for record in records), default=0) / max(job.steps, 1))


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"
