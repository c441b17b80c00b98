"""Train on speech that is simulated from its transcript, for the projector ``ctc``.

Shape legend: B utterances, N spoken tokens, P positions, V spoken tokens and the blank, M speech tokens, D width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ossicle.batch import Batch, LossOutput, Padded, pad
from ossicle.errors import DataError
from ossicle.models.ctc import BLANK, CTCProjector, Spelling
from ossicle.models.speech_llm import SpeechLLM
from ossicle.objectives import Objective, Plain
from ossicle.objectives.containing import Around, Containing
from ossicle.objectives.next_token import NextToken
from ossicle.objectives.weighted_sum import WeightedSum
from ossicle.section import section

FLOOR = 1e-4
"""Probability that all classes of a position share, since a network gives none of them zero."""


@section
class SimulatedSpeech(Containing):
    """An objective on batches in which a share of the speech is simulated from the transcripts.

    A simulated utterance has the posterior that the network of the projector ``ctc`` could give for its transcript,
    with errors. The projector mixes token embeddings by it, as by its own. No audio is read for it. It trains what
    reads the mixtures: the projector's prompt, the bias of its residual, and adapters of the LLM. Evaluation has the
    speech itself. The family of TASU (arXiv 2511.03310); not in the paper.
    """

    name: Literal["simulated_speech"] = "simulated_speech"
    objective: Plain = NextToken()
    """The objective that reads the speech tokens; a ``sum`` is possible. ``ctc`` always reads the audio."""
    share: float = Field(default=0.5, ge=0, le=1)
    """Probability of each utterance to be simulated. With 1 the audio is not encoded, unless a ``sum`` needs it."""
    substitutions: float = Field(default=0.05, ge=0, le=1)
    """Probability of each token to be replaced by a random one."""
    deletions: float = Field(default=0.05, ge=0, le=1)
    """Probability of each token to be left out."""
    insertions: float = Field(default=0.05, ge=0, le=1)
    """Probability of a random token after each token."""
    repeats: int = Field(default=3, ge=1, le=100)
    """Largest number of positions of a token. The number is drawn evenly from 1 on."""
    smoothing: float = Field(default=0.4, ge=0, le=0.49)
    """Largest probability that a position gives to another, random token. It is drawn evenly from 0 on."""

    def build(self) -> PartlySimulated:
        """Return the objective with the inner one built."""
        return PartlySimulated(self.objective.build(), self)

    def posterior(self, labels: list[list[int]], classes: int, device: torch.device | None = None) -> Padded:
        """Return log-probabilities (B, P, V) of ``classes`` V for the ``labels`` of B utterances, at random.

        Labels are numbers of spoken tokens from 1 on. A text without any is one blank. The CPU draws the numbers.
        """
        path = pad([self._path(self._with_errors(torch.tensor(row, dtype=torch.long), classes)) for row in labels])
        other = torch.randint(1, classes, path.values.shape)
        moved = self.smoothing * torch.rand(path.values.shape)
        shares = torch.stack([1 - FLOOR - moved, moved], -1)  # (B, P, 2)
        posterior = torch.full((*path.values.shape, classes), FLOOR / classes, device=device)
        posterior.scatter_add_(-1, torch.stack([path.values, other], -1).to(device), shares.to(device))
        return Padded(posterior.log(), path.mask.to(posterior.device))

    def _with_errors(self, labels: Tensor, classes: int) -> Tensor:
        """Return ``labels`` (N,) with random substitutions, deletions and insertions."""
        chances, drawn = torch.rand(3, len(labels)), torch.randint(1, classes, (2, len(labels)))
        labels = torch.where(chances[0] < self.substitutions, drawn[0], labels)
        present = torch.stack([chances[1] >= self.deletions, chances[2] < self.insertions], 1)
        return torch.stack([labels, drawn[1]], 1)[present]

    def _path(self, labels: Tensor) -> Tensor:
        """Return the label of each position (P,): tokens, repeated, with blanks before some of them."""
        if not len(labels):
            return torch.tensor([BLANK])
        # The mixture drops blanks, so that their number does not matter; equal neighbours need one to stay two.
        blank = (torch.rand(len(labels)) < 0.5) | (labels == F.pad(labels, (1, 0), value=BLANK)[:-1])
        counts = torch.stack([blank.long(), torch.randint(1, self.repeats + 1, blank.shape)], 1)
        return torch.stack([torch.full_like(labels, BLANK), labels], 1).flatten().repeat_interleave(counts.flatten())


class PartlySimulated(Around):
    """Compute a built objective on batches of real and simulated speech."""

    def __init__(self, objective: Objective, config: SimulatedSpeech) -> None:
        super().__init__(objective, name="simulated_speech", projector="ctc", able="spells")
        self.config = config

    def forward(self, model: SpeechLLM, batch: Batch) -> LossOutput:
        """Return the inner loss. Raises `ConfigError` for another projector or mixed sequences, and `DataError`."""
        self.check(model)
        if missing := [sample.source for sample in batch.samples if not sample.text]:
            raise DataError(f"objective 'simulated_speech' needs transcripts; add 'text' to {', '.join(missing[:3])}")
        if not model.training:
            return self.objective(model, batch)
        if isinstance(self.objective, WeightedSum):
            batch = replace(batch, frames=model.frames(batch, augmented=False))  # encoded once
        output = self.objective(model, replace(batch, speech=self.speech(model, batch)))
        # Distributed training requires a gradient for every parameter, also for those that only real speech trains.
        unused = sum(0.0 * parameter.sum() for parameter in model.projector.parameters())
        return LossOutput(output.total + unused, output.parts)

    def speech(self, model: SpeechLLM, batch: Batch) -> Padded:
        """Return the speech tokens of ``batch`` (B, M, D), of which a random share is simulated."""
        chosen = torch.rand(len(batch)) < self.config.share
        rows = [(~chosen).nonzero().flatten(), chosen.nonzero().flatten()]
        parts = []
        if len(rows[0]):
            parts.append(model.speech(_rows(batch, rows[0])))
        if len(rows[1]):
            texts = [batch.samples[i].text or "" for i in rows[1].tolist()]
            parts.append(simulated(model.projector, texts, self.config))
        longest = max(part.values.shape[1] for part in parts)
        back = torch.cat(rows).argsort()
        values = [F.pad(part.values, (0, 0, 0, longest - part.values.shape[1])) for part in parts]
        masks = [F.pad(part.mask, (0, longest - part.mask.shape[1])) for part in parts]
        return Padded(torch.cat(values)[back], torch.cat(masks)[back])


def simulated(projector: CTCProjector, texts: list[str], config: SimulatedSpeech) -> Padded:
    """Return the speech tokens (B, M, D) that ``projector`` could give for B ``texts``, its prompt included."""
    tokens, _ = projector.targets(texts)
    drawn = config.posterior(tokens, projector.tokens.out_features, projector.prompt.device)
    # What the network knows beyond its posterior cannot be simulated: of the residual, only the bias is left.
    states = drawn.values.new_zeros(*drawn.mask.shape, projector.residual.in_features)
    values, mask = projector.mix(Spelling(drawn.values, drawn.values[:, :0], drawn.mask, states))
    values = torch.cat([projector.prompt.to(values.dtype).expand(len(values), -1, -1), values], 1)
    return Padded(values, torch.cat([mask.new_ones(len(mask), len(projector.prompt)), mask], 1))


def _rows(batch: Batch, rows: Tensor) -> Batch:
    """Return the utterances ``rows`` of ``batch`` with their audio alone."""

    def of(padded: Padded | None) -> Any:
        return None if padded is None else Padded(padded.values[rows], padded.mask[rows])

    chosen = rows.tolist()
    return Batch(
        samples=[batch.samples[i] for i in chosen],
        waveforms=of(batch.waveforms),
        frames=of(batch.frames),
        speech=of(batch.speech),
        seeds=[batch.seeds[i] for i in chosen] if batch.seeds else [],
    )
