"""Checkpoints: the projector, and all that a run needs to continue as if it had never stopped.

A checkpoint is a folder: what `SpeechLLM.save` writes, and ``trainer.pt`` with optimiser, schedule, random states and
the position in the data.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ossicle.models.speech_llm import SpeechLLM

CHECKPOINTS, BEST, TRAINER_FILE = "checkpoints", "best", "trainer.pt"


@dataclass
class Progress:
    """Where a run is."""

    step: int = 0
    """Optimiser steps taken."""
    epoch: int = 0
    batch: int = 0
    """Batches of this epoch that this process has used."""
    audio_s: float = 0.0
    """Seconds of audio heard so far, by all processes."""
    best: float = float("inf")
    """Lowest loss on the development data; with ``train.best_by: retrieval`` the highest R@1, as a negative number."""


@dataclass
class Trainer:
    """The parts of a run that have a state besides the projector."""

    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    progress: Progress
    objective: nn.Module | None = None
    """Where a part of it trains, such as a temperature."""

    def state(self) -> dict[str, Any]:
        """Everything, as plain values and tensors."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "progress": asdict(self.progress),
            "objective": None if self.objective is None else self.objective.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.progress = Progress(**state["progress"])
        if self.objective is not None:
            self.objective.load_state_dict(state["objective"])
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["cuda_rng"])


def save(run_folder: Path, model: SpeechLLM, trainer: Trainer, *, keep: int) -> Path:
    """Write ``checkpoints/step-N``, delete all but the ``keep`` newest. A kill half-way leaves older ones whole."""
    folder = run_folder / CHECKPOINTS / f"step-{trainer.progress.step:07d}"
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save(partial)
    torch.save(trainer.state(), partial / TRAINER_FILE)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    for old in _all(run_folder)[:-keep]:
        shutil.rmtree(old)
    return folder


def save_best(run_folder: Path, model: SpeechLLM, progress: Progress) -> None:
    """Write ``best``: the projector that did best on the development data, and how it did."""
    model.save(run_folder / BEST)
    (run_folder / BEST / "progress.json").write_text(json.dumps(asdict(progress), indent=2) + "\n")


def latest(run_folder: Path) -> Path | None:
    """The newest complete checkpoint of a run."""
    found = _all(run_folder)
    return found[-1] if found else None


def load(folder: Path, model: SpeechLLM, trainer: Trainer) -> None:
    """Continue from a checkpoint: projector, optimiser, schedule, random states, position."""
    model.load_projector(folder)
    trainer.load(torch.load(folder / TRAINER_FILE, weights_only=True, map_location="cpu"))


def _all(run_folder: Path) -> list[Path]:
    return sorted(folder for folder in (run_folder / CHECKPOINTS).glob("step-*") if folder.suffix != ".partial")


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Parameters that the optimiser updates."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
