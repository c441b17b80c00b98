"""Train the projector ``cif`` with any objective on tokens that are as many as those of the transcript."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field

from ossicle.batch import Batch, LossOutput, Padded
from ossicle.losses.quantity import quantity_loss
from ossicle.models.dropout import of_utterances
from ossicle.models.speech_llm import SpeechLLM
from ossicle.objectives import Objective, Plain
from ossicle.objectives.containing import Around, Containing
from ossicle.section import section


@section
class CIF(Containing):
    """An objective on the tokens of the projector ``cif``, and the quantity loss that makes their number right.

    total = loss of ``objective`` + quantity · mean |sum of weights - number of text tokens| / number of text tokens.
    In training, the weights of each utterance are scaled so that it has as many speech tokens as its transcript has
    tokens of the LLM. In evaluation they are not, as in use. Source: Dong & Xu 2020; not in the paper.
    """

    name: Literal["cif"] = "cif"
    objective: Plain
    """The objective that reads the tokens; a ``sum`` is possible."""
    quantity: float = Field(default=1.0, ge=0, le=1e3)
    """Weight of the quantity loss."""

    def build(self) -> CountedTokens:
        """Return the objective with the inner one built."""
        return CountedTokens(self.objective.build(), self.quantity)


class CountedTokens(Around):
    """Compute a built objective on as many speech tokens as the transcript has, plus the quantity loss."""

    def __init__(self, objective: Objective, quantity: float) -> None:
        super().__init__(objective, name="cif", projector="cif", able="counts")
        self.quantity = quantity

    def forward(self, model: SpeechLLM, batch: Batch) -> LossOutput:
        """Return both losses. Raises `ConfigError` for another projector or mixed sequences."""
        self.check(model)
        counts = model.text(batch).mask.sum(1).clamp_min(1)
        batch = replace(batch, frames=model.frames(batch, augmented=False))  # encoded once
        frames = model.frames(batch)
        with of_utterances(batch.samples, frames.values.device):
            states, weights = model.projector.weigh(frames.values, frames.mask)
        speech = Padded(*model.projector.tokens(states, weights, counts if model.training else None))
        inner = self.objective(model, replace(batch, speech=speech))
        quantity = quantity_loss(weights.sum(1), counts)
        total = inner.total + self.quantity * batch.weighted(quantity, "examples")
        return LossOutput(total, inner.parts | {"quantity": quantity.detach()})
