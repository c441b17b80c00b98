"""Begin a contrastive objective with the first of its layers, and add the others while the run goes on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ossicle.batch import Batch, LossOutput
from ossicle.models.speech_llm import SpeechLLM


class GrowingDepth(nn.Module):
    """A contrastive objective (`Contrastive`) that compares more of its layers from step to step.

    Of its K layers, the optimiser step t (from 0) compares the first 1 + floor((K - 1) · min(1, t / depth_steps)). The
    LLM runs up to the deepest of them, and not at all while layer 0 is alone. Evaluation compares all layers, so that
    its losses can be compared with each other. Checkpoints hold the number of steps. Not in the paper.
    """

    needs_negatives = True
    needs_mixed = False

    def __init__(self, objective: Any) -> None:
        super().__init__()
        self.objective = objective
        self.temperature, self.balance_every = objective.temperature, objective.balance_every
        self.begun = 0
        """Number of optimiser steps that have begun."""

    def forward(self, model: SpeechLLM, batch: Batch, temperature: Tensor | None = None) -> LossOutput:
        """Return the loss and one part per compared layer; ``temperature`` () replaces the configured one."""
        losses = self.losses(model, batch, temperature)
        weights = self.weights(model.llm.num_layers).values()
        total = torch.stack([weight * loss for weight, loss in zip(weights, losses.values(), strict=False)]).sum()
        return LossOutput(total, {name: loss.detach() for name, loss in losses.items()})

    def weights(self, num_layers: int) -> dict[int, float]:
        """Return the weight of each layer of the whole objective."""
        weights: dict[int, float] = self.objective.weights(num_layers)
        return weights

    def losses(self, model: SpeechLLM, batch: Batch, temperature: Tensor | None = None) -> dict[str, Tensor]:
        """Return the loss of each compared layer, without its weight, and count the step that begins."""
        if model.training:
            # The batches of a step add up their gradients, so that only its first batch finds none.
            self.begun += all(parameter.grad is None for parameter in model.projector.parameters())
        depth = self.depth(model.llm.num_layers) if model.training else None
        losses: dict[str, Tensor] = self.objective.losses(model, batch, temperature, depth)
        return losses

    def depth(self, num_layers: int) -> int:
        """Return the number of layers that the step which began last compares."""
        steps: int = self.objective.depth_steps
        done = min(max(0, self.begun - 1), steps)
        return 1 + (len(self.weights(num_layers)) - 1) * done // steps

    def get_extra_state(self) -> int:
        """Return the number of steps, for a checkpoint."""
        return self.begun

    def set_extra_state(self, state: int) -> None:
        """Continue with the number of steps of a checkpoint."""
        self.begun = state


def at_full_depth(objective: Any) -> Any:
    """Return a built ``objective`` after all layers have been added to it, as a step costs most then."""
    for part in objective.modules() if isinstance(objective, nn.Module) else ():
        if isinstance(part, GrowingDepth):
            part.begun = part.objective.depth_steps + 1
    return objective
