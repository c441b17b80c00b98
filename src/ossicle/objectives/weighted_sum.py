"""Weighted sums of objectives on the same batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ossicle.batch import Batch, LossOutput
from ossicle.models.speech_llm import SpeechLLM
from ossicle.objectives import Objective, Single
from ossicle.section import section


@section
class Term:
    """One term of a sum."""

    objective: Single
    """The objective of this term."""
    weight: float = 1.0
    """Factor of its loss."""


@section
class Sum:
    """Weighted sum of objectives on the same batch.

    Whole utterances, and the spans of mixed sequences, are projected once for all terms.
    """

    name: Literal["sum"] = "sum"
    terms: list[Term] = Field(min_length=1)
    """Objectives with their weights."""

    def build(self) -> WeightedSum:
        """Return the sum of the built objectives."""
        return WeightedSum([(term.weight, term.objective.build()) for term in self.terms])


class WeightedSum(nn.Module):
    """Weighted sum of built objectives. It registers the parameters of those that have any."""

    def __init__(self, terms: Sequence[tuple[float, Objective]]) -> None:
        super().__init__()
        self.terms = list(terms)
        self.trained = nn.ModuleList(objective for _, objective in terms if isinstance(objective, nn.Module))

    @property
    def needs_negatives(self) -> bool:
        """True if any term needs negatives."""
        return any(objective.needs_negatives for _, objective in self.terms)

    @property
    def needs_mixed(self) -> bool:
        """True if any term needs mixed sequences."""
        return any(objective.needs_mixed for _, objective in self.terms)

    def forward(self, model: SpeechLLM, batch: Batch) -> LossOutput:
        """Return the weighted sum of the totals, and the parts of all terms."""
        batch = self._projected(model, batch)
        outputs = [objective(model, batch) for _, objective in self.terms]
        totals = [weight * output.total for (weight, _), output in zip(self.terms, outputs, strict=True)]
        parts: dict[str, Tensor] = {}
        for i, output in enumerate(outputs):
            # Two terms may report a part of the same name, such as the same layer at two temperatures.
            parts |= {name if name not in parts else f"{name}#{i}": part for name, part in output.parts.items()}
        return LossOutput(torch.stack(totals).sum(), parts)

    def _projected(self, model: SpeechLLM, batch: Batch) -> Batch:
        """Return ``batch`` with the frames and speech tokens that the terms need, so that they are computed once."""
        if not all(objective.needs_mixed for _, objective in self.terms):
            batch = replace(batch, frames=model.frames(batch, augmented=False))
            batch = replace(batch, speech=model.speech(batch))
        if self.needs_mixed:
            from ossicle.objectives.mixed import mixed_of  # few sums have mixed sequences

            mixed = mixed_of(batch)
            batch = replace(batch, mixed=replace(mixed, speech=model.spans(mixed)))
        return batch
