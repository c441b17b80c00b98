"""What a study consists of, and what of it can be done now: a function of its file and of what is on the disk."""

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
"""Steps that take as long as those of ``compute_like`` to within this share need no run of their own."""


class CellKey(NamedTuple):
    """A cell of the table: one row, column and seed."""

    mode: Mode
    name: str
    fraction: float
    seed: int


class Plan:
    """The cells of a study and the jobs that lead to them. ``data`` has manifests, of the lab too (`make_lab_data`)."""

    def __init__(self, config: StudyConfig, data: StudyData) -> None:
        self.config, self.data, self.folder = config, data, config.folder
        self.describe = Description(config, data)
        self.choices = Choices(self.describe)

    def cells(self) -> list[CellKey]:
        """Every cell, in the order in which they should be done: the first seed of all rows comes first."""
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
        """All that can be described with what is known now, done or not, each once and after what it starts from."""
        found: dict[Path, Job] = {}
        for job in self._in_order():
            found.setdefault(job.folder, job)
        return list(found.values())

    def cell(self, key: CellKey) -> Job | None:
        """The job of a cell; None while its settings are still to be chosen."""
        setting = self.setting(key.mode, key.name)
        steps = self.choices.finetune_steps(key.name, key.fraction)
        if setting is None or steps is None:
            return None
        return self.describe.cell(key.name, setting, key.fraction, key.seed, steps)

    def setting(self, mode: Mode, name: str) -> Setting | None:
        """What ``name`` is trained with under ``mode``; None while trials or measurements are missing."""
        chosen = self.choices.setting(name, with_length=mode == "chosen")
        if chosen is None or mode != "compute" or self.config.pretraining[name].recipe is None:
            return chosen
        own, like = self._cost(name), self._cost(self.config.compare.compute_like or "")
        if own is None or like is None:
            return None
        if abs(like / own - 1) < SAME_COST:
            return chosen
        return replace(chosen, steps=max(1, round(self.config.stage1.steps * like / own)))

    def start(self, mode: Mode, name: str, seed: int) -> Job | None:
        """Stage 1 of a row under ``mode``; None where it has none, or while its settings are still to be chosen."""
        setting = self.setting(mode, name)
        return None if setting is None else self.describe.pretraining(name, setting, seed)

    def first_start(self, name: str) -> Job | None:
        """Stage 1 of the first seed, of the same steps: what is measured and shown."""
        return self.start("steps", name, self.config.seeds_of(name)[0])

    def _in_order(self) -> Iterator[Job]:
        if self.data.test:
            yield self.describe.bound()
        for name in self.config.pretraining:
            for setting, trial in self.choices.wanted(name):
                yield from _present(self.describe.pretraining(name, setting, self.config.choose.seed))
                yield trial
        for key in self.cells():
            if key.mode == "compute":  # what is measured first
                for name in {key.name, self.config.compare.compute_like or key.name}:
                    yield from _present(self.first_start(name))
            cell = self.cell(key)
            if cell is not None:
                yield from _present(self.start(key.mode, key.name, key.seed))
                yield cell

    def _cost(self, name: str) -> float | None:
        """Seconds of a step of stage 1, as the first seed measured; None while it has not run."""
        job = self.first_start(name)
        if job is None or not job.is_done():
            return None
        cost: float | None = job.record()["cost_s_per_step"]
        if cost is None:
            raise StudyError(
                f"{job.record_path}: a kill left no time of a step; delete {job.folder} to measure it again"
            )
        return cost


def is_ready(job: Job) -> bool:
    """Whether what it starts from is done."""
    return job.start is None or (job.start / PRETRAINED).is_file()


def _present(job: Job | None) -> list[Job]:
    return [] if job is None else [job]
