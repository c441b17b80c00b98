"""Save and load checkpoints, from which a run continues with the losses that it would have had without a stop.

A checkpoint is a folder with the files of `SpeechLLM.save`, and ``trainer.pt`` with the optimiser, the schedule, the
random states and the position in the data.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ossicle.models.speech_llm import SpeechLLM

CHECKPOINTS, BEST, TRAINER_FILE = "checkpoints", "best", "trainer.pt"


@dataclass
class Position:
    """How far a run has come."""

    step: int = 0
    """Number of optimiser steps taken."""
    epoch: int = 0
    """Index of the current pass over the data."""
    batch: int = 0
    """Number of batches of this epoch that this process has used."""
    audio_s: float = 0.0
    """Seconds of audio that all processes have used."""
    best: float = float("inf")
    """Lowest loss on the development data. With ``train.best_by: retrieval`` it is the highest R@1, negated."""


@dataclass
class Trainer:
    """The parts of a run, besides the projector, that have a state."""

    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    position: Position
    objective: nn.Module | None = None
    """The objective, if it is a module; it may have parameters, such as a temperature."""

    def state(self) -> dict[str, Any]:
        """Return the whole state as plain values and tensors."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "progress": asdict(self.position),
            "objective": None if self.objective is None else self.objective.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Restore a state that `state` returned."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.position = Position(**state["progress"])
        if self.objective is not None:
            self.objective.load_state_dict(state["objective"])
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["cuda_rng"])


def save(run_folder: Path, model: SpeechLLM, trainer: Trainer, *, keep: int) -> Path:
    """Write ``checkpoints/step-N`` atomically, delete all but the ``keep`` newest, and return the folder."""
    from ossicle.files import atomic_folder  # here, because only runs that reach a checkpoint write

    folder = run_folder / CHECKPOINTS / f"step-{trainer.position.step:07d}"
    with atomic_folder(folder) as partial:
        model.save(partial)
        torch.save(trainer.state(), partial / TRAINER_FILE)
    for old in _all(run_folder)[:-keep]:
        shutil.rmtree(old)
    return folder


def save_best(run_folder: Path, model: SpeechLLM, position: Position) -> None:
    """Write ``best`` atomically: the projector that did best on the development data, and its position."""
    from ossicle.files import atomic_folder, write_json  # as in `save`

    with atomic_folder(run_folder / BEST) as partial:
        model.save(partial)
        write_json(partial / "progress.json", asdict(position))


def latest(run_folder: Path) -> Path | None:
    """Return the newest complete checkpoint of a run, or None."""
    found = _all(run_folder)
    return found[-1] if found else None


def load(folder: Path, model: SpeechLLM, trainer: Trainer) -> None:
    """Restore projector, optimiser, schedule, random states and position from a checkpoint."""
    model.load_projector(folder)
    trainer.load(torch.load(folder / TRAINER_FILE, weights_only=True, map_location="cpu"))


def _all(run_folder: Path) -> list[Path]:
    """Return all complete checkpoints, oldest first; partial ones have names that start with a dot."""
    return sorted((run_folder / CHECKPOINTS).glob("step-*"))


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that the optimiser updates."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
