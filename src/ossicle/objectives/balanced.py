"""Balance the layers of a contrastive objective by the norms of their gradients.

Shape legend: B utterances, M speech tokens, K layers, D width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ossicle.batch import Batch, LossOutput
from ossicle.distributed import world_size
from ossicle.models.speech_llm import SpeechLLM

MEMORY = 0.9
"""Weight of the former norms in the running mean."""
MIN_NORM = 1e-12


class BalancedLayers(nn.Module):
    """A contrastive objective (`Contrastive`) whose layers pull equally hard at the speech tokens.

    total = sum over layers of w_l · (g / g_l) · loss_l, where g_l is the running mean of the norm of the gradient of
    loss_l in the speech tokens, g the geometric mean of all g_l, and w_l the configured weight. In a plain sum, the
    layer with the longest gradient decides; in the lab that is the last one by a factor of nine. After GradNorm (Chen
    et al., 2018), without its training of weights.
    """

    norms: Tensor
    step: Tensor
    needs_negatives = True
    needs_mixed = False

    def __init__(self, objective: Any) -> None:
        super().__init__()
        self.objective = objective
        self.register_buffer("norms", torch.empty(0))  # (K,) once measured
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def forward(self, model: SpeechLLM, batch: Batch) -> LossOutput:
        """Return the loss and one part per layer, and the factor of each layer that the balance gives."""
        weights = self.objective.weights(model.llm.num_layers)
        batch = replace(batch, speech=model.speech(batch))
        losses = self.objective.losses(model, batch)
        if self.training and torch.is_grad_enabled():
            if int(self.step) % self.objective.balance_every == 0 or len(self.norms) < len(losses):
                self._measure(losses, batch)
            self.step += 1
        factors = self._factors(len(losses)).to(next(iter(losses.values())).device)
        configured = factors.new_tensor(list(weights.values())[: len(losses)])
        total = (configured * factors * torch.stack(list(losses.values()))).sum()
        shown = {f"balance/{layer}": factor for layer, factor in zip(weights, factors, strict=False)}
        return LossOutput(total, {name: loss.detach() for name, loss in losses.items()} | shown)

    def _factors(self, count: int) -> Tensor:
        """Return g / g_l (K,) of the first ``count`` layers, with ones for layers that have not been measured."""
        logs = self.norms[:count].clamp_min(MIN_NORM).log()
        factors = (logs.mean() - logs).exp()
        return torch.cat([factors, factors.new_ones(count - len(factors))])

    def _measure(self, losses: dict[str, Tensor], batch: Batch) -> None:
        speech = batch.speech
        if speech is None or not speech.values.requires_grad:
            return
        found = [torch.autograd.grad(loss, speech.values, retain_graph=True)[0].norm() for loss in losses.values()]
        norms = torch.stack(found).float().detach()
        if world_size() > 1:
            squares = norms.square()  # the norm of the joined batch's gradient
            dist.all_reduce(squares)
            norms = squares.sqrt() / world_size()
        known = self.norms.to(norms.device)  # of the first layers, if others have been added since
        norms[: len(known)] = MEMORY * known + (1 - MEMORY) * norms[: len(known)]
        self.norms = norms

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: object) -> None:
        """Take over norms of any number of layers, which a new module does not know yet."""
        saved = state.get(f"{prefix}norms")
        if saved is not None:
            self.norms = saved.new_empty(len(saved))
        super()._load_from_state_dict(state, prefix, *rest)
