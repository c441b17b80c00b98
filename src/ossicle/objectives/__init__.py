"""What is minimised: every objective is called as ``objective(model, batch) -> LossOutput``.

An objective is a frozen configuration section that is its own implementation: to add one, write its loss as a pure
function in ``losses/``, a section in a file here, and name it in `Single`. ``build()`` returns what is called: the
section itself, or a module where something of it trains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from ossicle.batch import Batch, LossOutput
from ossicle.models.speech_llm import SpeechLLM
from ossicle.objectives.base import Objective, sum_of
from ossicle.objectives.contrastive import Contrastive
from ossicle.objectives.distillation import Distillation
from ossicle.objectives.mixed import MixedContrastive, MixedNextToken, mixed_of
from ossicle.objectives.next_token import NextToken
from ossicle.section import section

__all__ = [
    "Contrastive",
    "Distillation",
    "MixedContrastive",
    "MixedNextToken",
    "NextToken",
    "Objective",
    "ObjectiveConfig",
    "Sum",
    "Term",
    "WeightedSum",
]

Single = Annotated[
    Contrastive | NextToken | MixedNextToken | MixedContrastive | Distillation, Field(discriminator="name")
]
"""Every objective that can be a summand: a new one is named here."""


@section
class Term:
    """One summand."""

    objective: Single
    weight: float = 1.0


@section
class Sum:
    """Weighted sum of objectives on the same batch; whole utterances, and the spans of mixed sequences, are projected
    once.
    """

    name: Literal["sum"] = "sum"
    terms: list[Term] = Field(min_length=1)

    def build(self) -> WeightedSum:
        """The sum to call."""
        return WeightedSum([(term.weight, term.objective.build()) for term in self.terms])


class WeightedSum(nn.Module):
    """Sum of built objectives, each with its weight; holds the parameters of those that have any."""

    def __init__(self, terms: Sequence[tuple[float, Objective]]) -> None:
        super().__init__()
        self.terms = list(terms)
        self.trained = nn.ModuleList(objective for _, objective in terms if isinstance(objective, nn.Module))

    @property
    def needs_negatives(self) -> bool:
        """Whether any term does."""
        return any(objective.needs_negatives for _, objective in self.terms)

    @property
    def needs_mixed(self) -> bool:
        """Whether any term does."""
        return any(objective.needs_mixed for _, objective in self.terms)

    def forward(self, model: SpeechLLM, batch: Batch) -> LossOutput:
        """Sum of the totals; parts of all terms."""
        batch = self._projected(model, batch)
        outputs = [objective(model, batch) for _, objective in self.terms]
        total = sum_of(weight * output.total for (weight, _), output in zip(self.terms, outputs, strict=True))
        parts: dict[str, Tensor] = {}
        for i, output in enumerate(outputs):
            # Two terms may report a part of the same name, such as the same layer at two temperatures.
            parts |= {name if name not in parts else f"{name}#{i}": part for name, part in output.parts.items()}
        return LossOutput(total, parts)

    def _projected(self, model: SpeechLLM, batch: Batch) -> Batch:
        """The batch with the speech that the terms hear."""
        if not all(objective.needs_mixed for _, objective in self.terms):
            batch = replace(batch, speech=model.speech(batch))
        if self.needs_mixed:
            mixed = mixed_of(batch)
            batch = replace(batch, mixed=replace(mixed, speech=model.spans(mixed)))
        return batch


ObjectiveConfig = Annotated[Single | Sum, Field(discriminator="name")]
