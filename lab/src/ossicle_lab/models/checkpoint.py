"""Save and load the state of a training with several optimisers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from ossicle.files import atomic


def save_state(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], step: int, path: Path) -> None:
    """Write the state after ``step`` steps to ``path``."""
    state = {"step": step, "model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}
    with atomic(path) as partial:
        torch.save(state, partial)


def load_state(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], path: Path) -> int:
    """Load the state that `save_state` wrote and return its number of steps, or 0 if there is no file."""
    if not path.is_file():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return int(state["step"])
