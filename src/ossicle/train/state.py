"""Define the parts of a training run that a checkpoint keeps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn


@dataclass
class Position:
    """The position of a run: its step, epoch and batch, and its best score."""

    step: int = 0
    """Number of optimiser steps taken, skipped ones included."""
    epoch: int = 0
    """Index of this process's current pass over the data."""
    batch: int = 0
    """Number of batches of this epoch that this process has used."""
    audio_s: float = 0.0
    """Seconds of audio that all processes have used."""
    best: float = float("inf")
    """Lowest loss on the development data. With ``train.best_by: retrieval`` it is the highest R@1, negated."""
    nonfinite: int = 0
    """Number of steps that were skipped because the loss or its gradient was not finite."""
    nonfinite_in_a_row: int = 0
    """Number of the newest steps that were skipped for it."""


@dataclass
class Trainer:
    """The parts of a run, besides the projector, that have a state."""

    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    position: Position
    objective: nn.Module | None = None
    """The objective, if it is a module; it may have parameters, such as a temperature."""
    scaler: Any = None
    """The scaler of the gradients with ``train.precision: fp16``."""
    data: dict[str, str] = field(default_factory=dict)
    """Fingerprints of the training and of the development data."""
    planned_for: int = 1
    """Number of processes of the run's start, for which the batches are planned."""
    batches_per_round: int = 1
    """Number of batches of this process that replace one of each of ``planned_for`` processes."""


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that the optimiser updates."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
