"""Objective of connectionist temporal classification (CTC): the speech spells the transcript, without the LLM."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ossicle.batch import Batch, LossOutput
from ossicle.errors import ConfigError, DataError
from ossicle.losses.ctc import ctc_loss
from ossicle.models.ctc import spelled
from ossicle.models.dropout import of_utterances
from ossicle.models.speech_llm import SpeechLLM
from ossicle.section import section


@section
class CTC:
    """CTC loss of the transcript, spelled with the LLM's tokens, and of its characters in the middle of the network.

    The LLM does not run. The transcript counts as it is heard: in lower case, without punctuation. Not in the paper;
    see `ossicle.models.ctc` for sources.
    """

    name: Literal["ctc"] = "ctc"
    characters: float = Field(default=1.0, ge=0, le=1e3)
    """Weight of the loss on characters beside that on tokens. Both are in nats per label."""

    needs_negatives = False
    needs_mixed = False

    def build(self) -> CTC:
        """Return the objective itself, since it has no parameters."""
        return self

    def __call__(self, model: SpeechLLM, batch: Batch) -> LossOutput:
        """Return the loss. Raises `ConfigError` for another projector, and `DataError` without transcripts."""
        if model.config.projector.name != "ctc":
            raise ConfigError("objective 'ctc' needs a projector that spells: set model.projector.name=ctc")
        if missing := [sample.source for sample in batch.samples if not sample.text]:
            raise DataError(f"objective 'ctc' needs transcripts; add 'text' to {', '.join(missing[:3])}")
        frames = model.frames(batch)
        with of_utterances(batch.samples, frames.values.device):
            spelling = spelled(model.projector, frames)
        tokens, characters = model.projector.targets([sample.text or "" for sample in batch.samples])
        lengths = spelling.mask.sum(1)
        slots = spelling.characters.shape[1] // spelling.tokens.shape[1]
        parts = {
            "ctc": ctc_loss(spelling.tokens, lengths, tokens),
            "characters": ctc_loss(spelling.characters, slots * lengths, characters),
        }
        # Distributed training requires a gradient for every parameter, also for those that only the LLM's loss trains.
        unused = sum(0.0 * parameter.sum() for parameter in model.projector.unspelled)
        total = batch.weighted(parts["ctc"] + self.characters * parts["characters"] + unused, "examples")
        return LossOutput(total, {name: part.detach() for name, part in parts.items()})
