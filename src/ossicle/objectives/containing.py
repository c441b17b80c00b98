"""Define the common parts of objectives that contain another one: ``cif`` and ``simulated_speech``."""

from __future__ import annotations

from typing import Any

from torch import nn

from ossicle.errors import ConfigError
from ossicle.models.speech_llm import SpeechLLM
from ossicle.objectives import Objective, terms_of
from ossicle.objectives.weighted_sum import Term


class Containing:
    """A section with another objective in its field ``objective``."""

    objective: Any

    @property
    def terms(self) -> list[Term]:
        """The objectives inside, as terms of a sum, for those who ask which objectives a run has."""
        return [Term(objective=single) for single in terms_of(self.objective)]


class Around(nn.Module):
    """A built objective that changes the speech which another one, ``objective``, reads.

    Args:
        objective: The built inner objective.
        name: Name of the outer objective, for messages.
        projector: Name of the only projector that it works with.
        able: What this projector does, for messages.
    """

    needs_mixed = False  # spans of speech have no transcript of their own

    def __init__(self, objective: Objective, *, name: str, projector: str, able: str) -> None:
        super().__init__()
        self.objective = objective  # a module is registered by this
        self.name, self.projector, self.able = name, projector, able

    @property
    def needs_negatives(self) -> bool:
        """True if the inner objective needs negatives."""
        return self.objective.needs_negatives

    def check(self, model: SpeechLLM) -> None:
        """Raise `ConfigError` for another projector, or an inner objective with mixed sequences."""
        if model.config.projector.name != self.projector:
            raise ConfigError(
                f"objective '{self.name}' needs a projector that {self.able}: set model.projector.name={self.projector}"
            )
        if self.objective.needs_mixed:
            raise ConfigError(
                f"objective '{self.name}' has whole utterances: take an objective without mixed sequences"
            )
