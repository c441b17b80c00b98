"""Optimiser and learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from pydantic import Field
from torch import nn

from ossicle.section import section


@section
class OptimConfig:
    """AdamW with linear warm-up and cosine decay to zero; the defaults are the paper's."""

    lr: float = Field(default=1e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    warmup: float = Field(default=0.03, ge=0, lt=1)
    """Share of all steps."""
    clip: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient."""

    def build(
        self, parameters: Iterable[nn.Parameter], *, steps: int
    ) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        """Make optimiser and schedule for a run of ``steps`` optimiser steps."""
        optimizer = torch.optim.AdamW(
            parameters, lr=self.lr, betas=self.betas, weight_decay=self.weight_decay, fused=True
        )
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.factor(step, steps))

    def factor(self, step: int, steps: int) -> float:
        """Learning rate at ``step`` of ``steps``, relative to ``lr``."""
        warmup = max(1, round(self.warmup * steps))
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup) / max(1, steps - warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
