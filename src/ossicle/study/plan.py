"""What a study consists of, and what of it can be done now: a function of its file and of what is on the disk."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from ossicle import config as recipes
from ossicle.study.config import MODES, Mode, StudyConfig, StudyData
from ossicle.study.interval import metrics_of
from ossicle.study.job import RECORDS, Job, Kind, StudyError

SAME_COST = 0.05
"""Steps that take as long as those of ``compute_like`` to within this share need no run of their own."""
STAGES = 3
"""Of the search for settings: see `Plan._choices`."""


class CellKey(NamedTuple):
    """A cell of the table: one row, column and seed."""

    mode: Mode
    name: str
    fraction: float
    seed: int


@dataclass(frozen=True)
class Setting:
    """What may differ between pretrainings; ``steps`` and ``lr`` are of stage 1, 0 where there is none."""

    steps: int
    lr: float
    finetune_lr: float


class Plan:
    """The jobs of a study. ``data`` has manifests, of the lab too (`make_lab_data`)."""

    def __init__(self, config: StudyConfig, data: StudyData) -> None:
        self.config, self.data, self.folder = config, data, config.folder
        self.cache = config.folder / "cache"
        self._recipe_lr: dict[str, float] = {}
        self._finetune_lr = recipes.load(config.finetuning.recipe, self._finetune_overrides(1.0)).optim.lr

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
        """The job of a cell; None while its settings are still to be chosen. Modes share cells of the same settings."""
        setting = self.setting(key.mode, key.name)
        known = setting is not None and self.finetune_steps(key.name, key.fraction) is not None
        return self._cell(key, setting) if setting is not None and known else None

    def bound(self) -> Job:
        """The LLM reads the transcripts."""
        return replace(
            self._finetuning("bound", self.folder / "bound", 1.0, "the LLM reads the transcript"),
            test=tuple(self.data.test),
        )

    def setting(self, mode: Mode, name: str) -> Setting | None:
        """What ``name`` is trained with under ``mode``; None while trials or measurements are missing."""
        chosen = self._decided(name, with_length=mode == "chosen")
        if chosen is None or mode != "compute" or self.config.pretraining[name].recipe is None:
            return chosen
        own, like = self._cost(name, chosen), self._like_cost()
        if own is None or like is None:
            return None
        if abs(like / own - 1) < SAME_COST:
            return chosen
        return replace(chosen, steps=max(1, round(self.config.stage1.steps * like / own)))

    def pretraining(self, name: str, setting: Setting, seed: int) -> Job | None:
        """Stage 1 of a row with one seed; None where it has none. Trials, modes and cells share it."""
        row, stage1 = self.config.pretraining[name], self.config.stage1
        if row.recipe is None:
            return None
        data = [*self.data.pretrain, *(self.data.extra if row.extra_data else ())]
        return Job(
            kind="pretraining",
            label=f"{name}, stage 1, {setting.steps} steps, seed {seed}",
            folder=self.folder / "pretraining" / name / f"{setting.steps}-steps-lr-{setting.lr:g}" / f"seed-{seed}",
            recipe=Path(row.recipe),
            overrides=(*stage1.overrides, *row.overrides, *_run(data, setting.lr, seed)),
            steps=setting.steps,
            cost_key=name,
            alignment=tuple(self.data.alignment),
            cache=self.cache,
            device=self.config.device,
        )

    def finetune_steps(self, name: str, fraction: float) -> int | None:
        """Length of stage 2: given, or where the development score has its plateau; None while that is not known."""
        lengths = self.config.pretraining[name].plateau.get(fraction)
        if lengths is None:
            given = self.config.pretraining[name].finetune_steps
            return given.get(fraction, self.config.finetuning.steps[fraction])
        scores = [score for _, score in self.plateau(name, fraction)]
        if None in scores:
            return None
        return lengths[scores.index(max(score for score in scores if score is not None))]

    def plateau(self, name: str, fraction: float) -> list[tuple[int, float | None]]:
        """Lengths of stage 2 with their scores on the development split, up to the first that gained too little.

        The last has no score where it is still to be tried.
        """
        tried: list[tuple[int, float | None]] = []
        gain = self.config.choose.plateau_gain
        for steps in self.config.pretraining[name].plateau.get(fraction, ()):
            tried.append((steps, self._score_of(self._plateau_trial(name, fraction, steps))))
            (_, before), (_, now) = ([(0, 0.0), *tried])[-2:]
            if now is None or before is None or (len(tried) > 1 and now - before < gain):
                break
        return tried

    def trials(self, name: str) -> list[tuple[Setting, float | None]]:
        """The settings tried for a row, each with its score on the development split where it is known."""
        tried = {s: None for stage in self._choices(name) if len(stage) > 1 for s in stage}
        return [(setting, self._trial_score(name, setting)) for setting in tried]

    def _in_order(self) -> Iterator[Job]:
        if self.data.test:
            yield self.bound()
        for name in self.config.pretraining:
            for setting in self._open_trials(name):
                yield from self._with_start(self._trial(name, setting), name, setting, self.config.choose.seed)
            for fraction in self.config.pretraining[name].plateau:
                for steps, _ in self.plateau(name, fraction):
                    start = self._decided(name)
                    trial = self._plateau_trial(name, fraction, steps)
                    if start is not None and trial is not None:
                        yield from self._with_start(trial, name, start, self.config.choose.seed)
        like = self.config.compare.compute_like
        for key in self.cells():
            if key.mode == "compute":  # what is measured first
                for name in {key.name, like or key.name}:
                    known = self._decided(name)
                    if known is not None:
                        yield from _present(self.pretraining(name, known, self.config.seeds_of(name)[0]))
            used, cell = self.setting(key.mode, key.name), self.cell(key)
            if used is not None and cell is not None:
                yield from self._with_start(cell, key.name, used, key.seed)

    def _with_start(self, job: Job, name: str, setting: Setting, seed: int) -> Iterator[Job]:
        yield from _present(self.pretraining(name, setting, seed))
        yield job

    def _cell(self, key: CellKey, setting: Setting) -> Job:
        folder = self.folder / "cells" / key.name / f"{setting.steps}-steps" / f"{key.fraction:g}" / f"seed-{key.seed}"
        steps = self.finetune_steps(key.name, key.fraction) or 0
        return self._after(key.name, setting, key.fraction, key.seed, folder=folder, steps=steps)

    def _trial(self, name: str, setting: Setting) -> Job:
        choose = self.config.choose
        called = f"{setting.steps}-steps-lr-{setting.lr:g}-finetune-lr-{setting.finetune_lr:g}"
        folder = self.folder / "trials" / name / called
        given = self.config.pretraining[name].finetune_steps
        steps = given.get(choose.fraction, self.config.finetuning.steps[choose.fraction])
        job = self._after(name, setting, choose.fraction, choose.seed, folder=folder, steps=steps)
        return replace(job, kind="trial", label=f"{name}, trial {called}", test=tuple(self.data.dev))

    def _plateau_trial(self, name: str, fraction: float, steps: int) -> Job | None:
        """Stage 2 of one length on the development split; None while the setting of stage 1 is not chosen."""
        setting = self._decided(name)
        if setting is None:
            return None
        folder = self.folder / "trials" / name / f"plateau-{fraction:g}-{steps}-steps"
        job = self._after(name, setting, fraction, self.config.choose.seed, folder=folder, steps=steps)
        label = f"{name}, {fraction:.3g} of the data, trial of {steps} steps"
        return replace(job, kind="trial", label=label, test=tuple(self.data.dev))

    def _after(self, name: str, setting: Setting, fraction: float, seed: int, *, folder: Path, steps: int) -> Job:
        """Fine-tuning from the pretraining of ``setting`` and ``seed``, and the test."""
        start = self.pretraining(name, setting, seed)
        job = self._finetuning("cell", folder, fraction, f"{name}, {fraction:.3g} of the data, seed {seed}")
        return replace(
            job,
            overrides=(*job.overrides, f"optim.lr={setting.finetune_lr!r}", *_seeds(seed)),
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
            cache=self.cache,
            device=self.config.device,
            decode_batch=self.config.decode_batch,
            max_new_tokens=self.config.max_new_tokens,
        )

    def _finetune_overrides(self, fraction: float) -> list[str]:
        train = json.dumps(self.data.finetune)
        return [*self.config.finetuning.overrides, f"data.train={train}", f"data.fraction={fraction!r}"]

    def _choices(self, name: str) -> list[list[Setting]]:
        """Candidates of three stages, the best so far first: rate of stage 1, of stage 2, length of stage 1.

        A stage that waits for trials of an earlier one has that one's candidates. Only ``chosen`` uses the third.
        """
        choose, row = self.config.choose, self.config.pretraining[name]
        lrs, lengths = (choose.lr, choose.steps) if row.recipe else ([], [])
        stages: list[list[Setting]] = []
        best = self._base(name)
        for stage in range(STAGES):
            others = [
                [replace(best, lr=lr) for lr in lrs],
                [replace(best, finetune_lr=lr) for lr in choose.finetune_lr],
                [replace(best, steps=steps) for steps in lengths],
            ][stage]
            stages.append(list(dict.fromkeys([best, *others])))
            winner = self._best(name, stages[-1])
            if winner is None:
                break
            best = winner
        return stages + [stages[-1]] * (STAGES - len(stages))

    def _decided(self, name: str, *, with_length: bool = False) -> Setting | None:
        return self._best(name, self._choices(name)[2 if with_length else 1])

    def _base(self, name: str) -> Setting:
        row = self.config.pretraining[name]
        if row.recipe is None:
            return Setting(0, 0.0, self._finetune_lr)
        if name not in self._recipe_lr:
            overrides = [*self.config.stage1.overrides, *row.overrides, f"data.train={json.dumps(self.data.pretrain)}"]
            self._recipe_lr[name] = recipes.load(row.recipe, overrides).optim.lr
        return Setting(self.config.stage1.steps, self._recipe_lr[name], self._finetune_lr)

    def _best(self, name: str, candidates: Sequence[Setting]) -> Setting | None:
        """The candidate with the best score on the development split; None while one has no score yet."""
        if len(candidates) == 1:
            return candidates[0]
        scores = [self._trial_score(name, setting) for setting in candidates]
        known = [score for score in scores if score is not None]
        return candidates[scores.index(max(known))] if len(known) == len(candidates) else None

    def _open_trials(self, name: str) -> list[Setting]:
        """What must be tried next."""
        wanted = self._choices(name)[: 3 if self.config.compare.chosen else 2]
        return [setting for stage in wanted if len(stage) > 1 for setting in stage]

    def _trial_score(self, name: str, setting: Setting) -> float | None:
        return self._score_of(self._trial(name, setting))

    def _score_of(self, trial: Job | None) -> float | None:
        if trial is None or not trial.is_done():
            return None
        return development_score(trial.record()["scores"], self.data.tasks)

    def _like_cost(self) -> float | None:
        like = self.config.compare.compute_like or ""
        setting = self._decided(like)
        return None if setting is None else self._cost(like, setting)

    def _cost(self, name: str, setting: Setting) -> float | None:
        """Seconds of a step of stage 1, as the first seed measured; None while it has not run."""
        job = self.pretraining(name, setting, self.config.seeds_of(name)[0])
        if job is None or not job.is_done():
            return None
        cost: float | None = job.record()["cost_s_per_step"]
        if cost is None:
            raise StudyError(
                f"{job.record_path}: a kill left no time of a step; delete {job.folder} to measure it again"
            )
        return cost


def development_score(scores: dict[str, dict[str, float]], tasks: Iterable[str]) -> float:
    """What trials are chosen by: the mean over ``tasks`` of 100 - WER (at least 0), BLEU or F1."""
    values = [(metrics_of(task)[0], scores[task][metrics_of(task)[0]]) for task in tasks]
    good = [100 - min(value, 100) if metric == "wer" else value for metric, value in values]
    return sum(good) / len(good)


def is_ready(job: Job) -> bool:
    """Whether what it starts from is done."""
    return job.start is None or (job.start / RECORDS["pretraining"]).is_file()


def _run(data: list[str], lr: float, seed: int) -> list[str]:
    return [f"data.train={json.dumps(data)}", f"optim.lr={lr!r}", *_seeds(seed)]


def _seeds(seed: int) -> list[str]:
    return [f"train.seed={seed}", f"data.seed={seed}"]


def _present(job: Job | None) -> list[Job]:
    return [] if job is None else [job]
