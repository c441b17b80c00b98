"""Plan a study: derive its cells and the jobs that can be described now from its file and the files on disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ossicle_lab.study.choices import Choices
from ossicle_lab.study.config import MODES, Mode, StudyConfig, StudyData
from ossicle_lab.study.describe import Description, Setting
from ossicle_lab.study.job import PRETRAINED, Job, StudyError

SAME_COST = 0.05
"""If the time of a step differs from that of ``compute_like`` by less than this share, both modes share their runs."""


class CellKey(NamedTuple):
    """A cell of the table: one row, column and seed."""

    mode: Mode
    name: str
    fraction: float
    seed: int


class Plan:
    """The cells of a study and the jobs that lead to them. ``data`` has the paths of manifests (`prepare_data`)."""

    def __init__(self, config: StudyConfig, data: StudyData) -> None:
        self.config, self.data, self.folder = config, data, config.folder
        self.describe = Description(config, data)
        self.choices = Choices(self.describe)

    def cells(self) -> list[CellKey]:
        """Return every cell in the order of execution: first the first seed of all rows, then the second."""
        names = list(self.config.pretraining)
        most = max(len(self.config.seeds_of(name)) for name in names)
        return [
            CellKey(mode, name, fraction, self.config.seeds_of(name)[rank])
            for rank in range(most)
            for mode in MODES
            for name in names
            if rank < len(self.config.seeds_of(name))
            for fraction in self.config.fractions(mode)
        ]

    def jobs(self) -> list[Job]:
        """Return all jobs that can be described now, done or not, each once and after the job that it starts from."""
        found: dict[Path, Job] = {}
        for job in self._in_order():
            found.setdefault(job.folder, job)
        return list(found.values())

    def cell(self, key: CellKey) -> Job | None:
        """Return the job of a cell, or None while its settings are not chosen."""
        setting = self.setting(key.mode, key.name)
        steps = self.choices.finetune_steps(key.name, key.fraction)
        if setting is None or steps is None:
            return None
        return self.describe.cell(key.name, setting, key.fraction, key.seed, steps)

    def setting(self, mode: Mode, name: str) -> Setting | None:
        """Return the settings of ``name`` under ``mode``, or None while trials or time measurements are missing."""
        chosen = self.choices.setting(name, with_length=mode == "chosen")
        if chosen is None or mode != "compute" or self.config.pretraining[name].recipe is None:
            return chosen
        other = self.config.compare.compute_like or ""
        own, like = self._cost(name), self._cost(other)
        if own is None or like is None:
            return None
        if abs(like / own - 1) < SAME_COST:
            return chosen
        return replace(chosen, steps=max(1, round(self.config.stage1_steps(other) * like / own)))

    def start(self, mode: Mode, name: str, seed: int) -> Job | None:
        """Return stage 1 of a row under ``mode``; None if it has none, or while its settings are not chosen."""
        setting = self.setting(mode, name)
        return None if setting is None else self.describe.pretraining(name, setting, seed)

    def first_start(self, name: str) -> Job | None:
        """Return stage 1 of the first seed, in which the time per step is measured and reported."""
        setting, probe = self.setting("steps", name), self.config.compare.probe_steps
        if setting is None:
            return None
        if probe and not self.config.fractions("steps"):
            setting = replace(setting, steps=min(probe, setting.steps))
        return self.describe.pretraining(name, setting, self.config.seeds_of(name)[0])

    def _in_order(self) -> Iterator[Job]:
        if self.data.test:
            yield self.describe.bound()
        for name in self.config.pretraining:
            for setting, trial in self.choices.wanted(name):
                yield from _present(self.describe.pretraining(name, setting, self.config.choose.seed))
                yield trial
        for key in self.cells():
            if key.mode == "compute":  # the time of a step must be measured first
                for name in {key.name, self.config.compare.compute_like or key.name}:
                    yield from _present(self.first_start(name))
            cell = self.cell(key)
            if cell is not None:
                yield from _present(self.start(key.mode, key.name, key.seed))
                yield cell

    def _cost(self, name: str) -> float | None:
        """Return the seconds of a step of stage 1, measured on the first seed, or None while it has not run."""
        job = self.first_start(name)
        if job is None or not job.is_done():
            return None
        cost: float | None = job.record()["cost_s_per_step"]
        if cost is None:
            raise StudyError(
                f"{job.record_path}: the time of a step was lost in a kill; delete {job.folder} to measure it again"
            )
        return cost


def is_ready(job: Job) -> bool:
    """Return True if the job that it starts from is done."""
    return job.start is None or (job.start / PRETRAINED).is_file()


def _present(job: Job | None) -> list[Job]:
    return [] if job is None else [job]
