"""Choose the settings of each row from the trials on the development split that are done."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from ossicle_lab.study.describe import Description, Setting
from ossicle_lab.study.interval import metrics_of
from ossicle_lab.study.job import Job

STAGES = 3
"""Number of stages in the search for settings; see `Choices._stages`."""


class Choices:
    """Chooses by the scores of trials. Methods return None while a trial that they need is not done."""

    def __init__(self, describe: Description) -> None:
        self.describe, self.config = describe, describe.config

    def setting(self, name: str, *, with_length: bool = False) -> Setting | None:
        """Return the best learning rates and, if ``with_length``, the best length of stage 1."""
        return self._best(name, self._stages(name)[2 if with_length else 1])

    def finetune_steps(self, name: str, fraction: float) -> int | None:
        """Return the length of stage 2: the given one, or the best one that was tried."""
        if fraction not in self.config.pretraining[name].plateau:
            return self.describe.finetune_steps(name, fraction)
        tried = self.plateau(name, fraction)
        scores = {steps: score for steps, score in tried if score is not None}
        return None if len(scores) < len(tried) else max(scores, key=scores.__getitem__)

    def plateau(self, name: str, fraction: float) -> list[tuple[int, float | None]]:
        """Return lengths of stage 2 and their development scores, up to the first that gained too little.

        The score of the last one is None if its trial is not done.
        """
        setting = self.setting(name)
        tried: list[tuple[int, float | None]] = []
        before: float | None = None
        for steps in self.config.pretraining[name].plateau.get(fraction, ()):
            trial = None if setting is None else self.describe.plateau_trial(name, setting, fraction, steps)
            score = None if trial is None else self._score(trial)
            tried.append((steps, score))
            if score is None or (before is not None and score - before < self.config.choose.plateau_gain):
                break
            before = score
        return tried

    def trials(self, name: str) -> list[tuple[Setting, float | None]]:
        """Return the settings tried for a row, each with its development score or None."""
        tried = {s: None for stage in self._stages(name) if len(stage) > 1 for s in stage}
        return [(setting, self._score(self.describe.trial(name, setting))) for setting in tried]

    def wanted(self, name: str) -> Iterator[tuple[Setting, Job]]:
        """Yield each trial, done or not, with the setting of its stage 1."""
        stages = self._stages(name)[: STAGES if self.config.compare.chosen else STAGES - 1]
        for setting in dict.fromkeys(setting for stage in stages if len(stage) > 1 for setting in stage):
            yield setting, self.describe.trial(name, setting)
        decided = self.setting(name)
        if decided is None:
            return
        for fraction in self.config.pretraining[name].plateau:
            for steps, _ in self.plateau(name, fraction):
                yield decided, self.describe.plateau_trial(name, decided, fraction, steps)

    def _stages(self, name: str) -> list[list[Setting]]:
        """Return the candidates of three stages: learning rate of stage 1, learning rate of stage 2, length of stage 1.

        The first candidate of each stage is the best setting so far. A stage that waits for an earlier one repeats its
        candidates. Only the mode ``chosen`` uses the third stage.
        """
        choose = self.config.choose
        lrs, lengths = (choose.lr, choose.steps) if self.config.pretraining[name].recipe else ([], [])
        stages: list[list[Setting]] = []
        best = self.describe.base(name)
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

    def _best(self, name: str, candidates: Sequence[Setting]) -> Setting | None:
        """Return the candidate with the best development score, or None while one has no score."""
        if len(candidates) == 1:
            return candidates[0]
        scores = [self._score(self.describe.trial(name, setting)) for setting in candidates]
        known = [score for score in scores if score is not None]
        return candidates[scores.index(max(known))] if len(known) == len(candidates) else None

    def _score(self, trial: Job) -> float | None:
        return development_score(trial.record()["scores"], self.config.data.tasks) if trial.is_done() else None


def development_score(scores: dict[str, dict[str, float]], tasks: Iterable[str]) -> float:
    """Return the score that decides between trials: the mean over ``tasks`` of 100 - WER (at least 0), BLEU or F1."""
    values = [(metrics_of(task)[0], scores[task][metrics_of(task)[0]]) for task in tasks]
    good = [100 - min(value, 100) if metric == "wer" else value for metric, value in values]
    return sum(good) / len(good)
