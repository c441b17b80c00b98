"""Training objectives: each is called as ``objective(model, batch) -> LossOutput``.

An objective is a frozen section of the configuration that is its own implementation. To add one, write its loss as a
pure function in ``losses/`` and a section in a file here, and add the section to `PLACES`. ``build()`` returns what the
training loop calls: the section itself, or a module if the objective has parameters.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from ossicle.batch import Batch, LossOutput
from ossicle.models.speech_llm import SpeechLLM
from ossicle.section import Named

if TYPE_CHECKING:
    from ossicle.objectives.contrastive import Contrastive
    from ossicle.objectives.ctc import CTC
    from ossicle.objectives.distillation import Distillation
    from ossicle.objectives.mixed import MixedContrastive, MixedNextToken
    from ossicle.objectives.next_token import NextToken
    from ossicle.objectives.weighted_sum import Sum, Term, WeightedSum

__all__ = [
    "CTC",
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
    "names_of",
    "terms_of",
]

PLACES = {
    "contrastive": "ossicle.objectives.contrastive:Contrastive",
    "next_token": "ossicle.objectives.next_token:NextToken",
    "mixed_next_token": "ossicle.objectives.mixed:MixedNextToken",
    "mixed_contrastive": "ossicle.objectives.mixed:MixedContrastive",
    "distillation": "ossicle.objectives.distillation:Distillation",
    "ctc": "ossicle.objectives.ctc:CTC",
    "regression": "ossicle.objectives.regression:Regression",
    "on_policy": "ossicle.objectives.on_policy:OnPolicy",
}
"""Module and class of each objective that can be a term of a sum, by its name in recipes. Add a new one here."""
_SUM = "ossicle.objectives.weighted_sum:"
_CLASSES = {place.rpartition(":")[2]: place for place in PLACES.values()} | {
    name: _SUM + name for name in ("Sum", "Term", "WeightedSum")
}


class Objective(Protocol):
    """The interface between model and training loop."""

    @property
    def needs_negatives(self) -> bool:
        """True if utterances are compared with each other.

        Batches then contain at least two utterances and are drawn at random. In batches of similar length the loss
        would have only negatives of similar length.
        """
        ...

    @property
    def needs_mixed(self) -> bool:
        """True if the loss is computed on `Batch.mixed`, with spans of speech in place of whole utterances."""
        ...

    def __call__(self, model: SpeechLLM, batch: Batch) -> LossOutput:
        """Compute the loss of ``batch``."""
        ...


class Section(Protocol):
    """An objective as a section of the configuration."""

    @property
    def name(self) -> str:
        """Name of the objective in recipes."""
        ...

    def build(self) -> Any:
        """Return the `Objective` of this section."""
        ...


Single = Annotated[Section, Named(PLACES)]
"""Every objective that can be a term of a sum."""
_PLAIN = PLACES | {"sum": _SUM + "Sum"}
Plain = Annotated[Section, Named(_PLAIN)]
"""Every objective except those that contain one of them."""
_AROUND = {
    "cif": "ossicle.objectives.cif:CIF",
    "simulated_speech": "ossicle.objectives.simulated:SimulatedSpeech",
}
ObjectiveConfig = Annotated[Section, Named(_PLAIN | _AROUND)]
"""Every objective that a recipe can name."""


def names_of(objective: ObjectiveConfig) -> tuple[str, ...]:
    """Return the name of ``objective``, or those of the terms of a sum."""
    return tuple(single.name for single in terms_of(objective))


def terms_of(objective: ObjectiveConfig) -> list[Single]:
    """Return the objectives of a sum, or ``objective`` alone."""
    return [term.objective for term in objective.terms] if hasattr(objective, "terms") else [objective]


def __getattr__(name: str) -> Any:
    """Import a section when it is first used, so that a run reads only the objectives that it has."""
    if name not in _CLASSES:
        raise AttributeError(f"module 'ossicle.objectives' has no attribute '{name}'")
    module, _, attribute = _CLASSES[name].partition(":")
    return getattr(import_module(module), attribute)
