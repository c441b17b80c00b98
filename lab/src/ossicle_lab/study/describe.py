"""Build the jobs that a study's file describes, each with its folder and its overrides."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ossicle.train import recipe as recipes
from ossicle_lab.study.config import StudyConfig, StudyData
from ossicle_lab.study.job import Job, Kind


@dataclass(frozen=True)
class Setting:
    """Settings that may differ between pretrainings. ``steps`` and ``lr`` belong to stage 1 and are 0 without one."""

    steps: int
    lr: float
    finetune_lr: float


class Description:
    """Builds the jobs of a study. ``data`` has the paths of manifests (`prepare_data`)."""

    def __init__(self, config: StudyConfig, data: StudyData) -> None:
        self.config, self.data, self.folder = config, data, config.folder
        self._recipe_lr: dict[str, float] = {}
        shared = self._finetune_overrides(1.0)
        self._finetune_lr = {
            name: recipes.load(config.finetuning.recipe, [*shared, *row.finetune_overrides]).optim.lr
            for name, row in config.pretraining.items()
        }

    def base(self, name: str) -> Setting:
        """Return the settings of a row's recipes, which apply unless others are chosen."""
        row = self.config.pretraining[name]
        if row.recipe is None:
            return Setting(0, 0.0, self._finetune_lr[name])
        if name not in self._recipe_lr:
            overrides = [*self.config.stage1.overrides, *row.overrides, f"data.train={json.dumps(self.data.pretrain)}"]
            self._recipe_lr[name] = recipes.load(row.recipe, overrides).optim.lr
        return Setting(self.config.stage1_steps(name), self._recipe_lr[name], self._finetune_lr[name])

    def finetune_steps(self, name: str, fraction: float) -> int:
        """Return the length of stage 2 that the file gives."""
        return self.config.pretraining[name].finetune_steps.get(fraction, self.config.finetuning.steps[fraction])

    def bound(self) -> Job:
        """Return the job in which the LLM reads the transcripts."""
        job = self._finetuning("bound", self.folder / "bound", 1.0, "the LLM reads the transcript")
        return replace(job, test=tuple(self.data.test))

    def pretraining(self, name: str, setting: Setting, seed: int) -> Job | None:
        """Return stage 1 of a row with one seed, or None if it has none. Trials, modes and cells share it."""
        row, stage1 = self.config.pretraining[name], self.config.stage1
        if row.recipe is None:
            return None
        data = [*self.data.pretrain, *(self.data.extra if row.extra_data else ())]
        data = [str(self.config.answers)] if row.self_answers else data
        train = [f"data.train={json.dumps(data)}", f"optim.lr={setting.lr!r}", *_seeds(seed)]
        return Job(
            kind="pretraining",
            label=f"{name}, stage 1, {setting.steps} steps, seed {seed}",
            folder=self.folder / "pretraining" / name / f"{setting.steps}-steps-lr-{setting.lr:g}" / f"seed-{seed}",
            recipe=Path(row.recipe),
            overrides=(*stage1.overrides, *row.overrides, *train),
            steps=setting.steps,
            cost_key=name,
            alignment=tuple(self.data.alignment),
            cache=self.config.cache,
            device=self.config.device,
        )

    def cell(self, name: str, setting: Setting, fraction: float, seed: int, steps: int) -> Job:
        """Return the job that trains stage 2 for ``steps`` and runs the test. Modes with equal settings share it."""
        folder = self.folder / "cells" / name / f"{setting.steps}-steps" / f"{fraction:g}" / f"seed-{seed}"
        return self._after(name, setting, fraction, seed, steps, folder)

    def trial(self, name: str, setting: Setting) -> Job:
        """Return the job that scores one setting on the development split."""
        choose = self.config.choose
        called = f"{setting.steps}-steps-lr-{setting.lr:g}-finetune-lr-{setting.finetune_lr:g}"
        steps = self.finetune_steps(name, choose.fraction)
        job = self._after(name, setting, choose.fraction, choose.seed, steps, self.folder / "trials" / name / called)
        return replace(job, kind="trial", label=f"{name}, trial {called}", test=tuple(self.data.dev))

    def plateau_trial(self, name: str, setting: Setting, fraction: float, steps: int) -> Job:
        """Return the job that scores one length of stage 2 on the development split."""
        folder = self.folder / "trials" / name / f"plateau-{fraction:g}-{steps}-steps"
        job = self._after(name, setting, fraction, self.config.choose.seed, steps, folder)
        label = f"{name}, {fraction:.3g} of the data, trial of {steps} steps"
        return replace(job, kind="trial", label=label, test=tuple(self.data.dev))

    def _after(self, name: str, setting: Setting, fraction: float, seed: int, steps: int, folder: Path) -> Job:
        """Return fine-tuning that starts from the pretraining of ``setting`` and ``seed``, and the test."""
        start = self.pretraining(name, setting, seed)
        job = self._finetuning("cell", folder, fraction, f"{name}, {fraction:.3g} of the data, seed {seed}")
        return replace(
            job,
            overrides=(
                *job.overrides,
                *self.config.pretraining[name].finetune_overrides,
                f"optim.lr={setting.finetune_lr!r}",
                *_seeds(seed),
            ),
            steps=steps,
            cost_key=f"{fraction:g}",
            start=None if start is None else start.folder,
            test=tuple(self.data.test),
        )

    def _finetuning(self, kind: Kind, folder: Path, fraction: float, label: str) -> Job:
        return Job(
            kind=kind,
            label=label,
            folder=folder,
            recipe=Path(self.config.finetuning.recipe),
            overrides=tuple(self._finetune_overrides(fraction)),
            cache=self.config.cache,
            device=self.config.device,
            decode_batch=self.config.decode_batch,
            max_new_tokens=self.config.max_new_tokens,
        )

    def _finetune_overrides(self, fraction: float) -> Sequence[str]:
        train = json.dumps(self.data.finetune)
        return [*self.config.finetuning.overrides, f"data.train={train}", f"data.fraction={fraction!r}"]


def _seeds(seed: int) -> list[str]:
    return [f"train.seed={seed}", f"data.seed={seed}"]
