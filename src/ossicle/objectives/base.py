"""What every objective is: called as ``objective(model, batch) -> LossOutput``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

from ossicle.batch import Batch, LossOutput
from ossicle.models.speech_llm import SpeechLLM


class Objective(Protocol):
    """The seam between model and training loop."""

    @property
    def needs_negatives(self) -> bool:
        """Whether utterances are compared with each other.

        Batches then hold at least two and are drawn at random: negatives of equal length make length uninformative.
        """
        ...

    @property
    def needs_mixed(self) -> bool:
        """Whether it is about `Batch.mixed`, and hears the spans of speech there in place of whole utterances."""
        ...

    def __call__(self, model: SpeechLLM, batch: Batch) -> LossOutput:
        """Compute the loss of ``batch``."""
        ...


def sum_of(terms: Iterable[Tensor]) -> Tensor:
    """Sum of scalars."""
    return torch.stack(list(terms)).sum()


def detached(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """The parts of a loss, to be logged only."""
    return {name: part.detach() for name, part in parts.items()}
