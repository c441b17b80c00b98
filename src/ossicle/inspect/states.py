"""Collect the hidden states of the LLM for speech and for its transcript, mean-pooled per layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ossicle.batch import Batch, HiddenStates, Padded
from ossicle.errors import DataError
from ossicle.inspect.transport import transport_plan
from ossicle.losses.contrastive import mean_pool
from ossicle.models.projectors import aligned
from ossicle.models.speech_llm import SpeechLLM

PLAN_TOLERANCE = 0.01
"""Relative error of a column sum that is too small to see in a figure."""


@dataclass(frozen=True)
class PooledStates:
    """Mean-pooled hidden states of N utterances by layer, in the same order on both sides."""

    text: dict[int, Tensor]  # layer: (N, D)
    speech: dict[int, Tensor]  # layer: (N, D)
    transcripts: list[str]

    @classmethod
    def joined(cls, parts: Sequence[PooledStates]) -> PooledStates:
        """Concatenate the utterances of all ``parts``."""
        text, speech = (
            {layer: torch.cat([side[layer] for side in sides]) for layer in sides[0]}
            for sides in ([part.text for part in parts], [part.speech for part in parts])
        )
        return cls(text, speech, [transcript for part in parts for transcript in part.transcripts])


class Observer(Protocol):
    """Receive the hidden states of every position, which `pooled_states` discards."""

    def observe(self, batch: Batch, text: HiddenStates, speech: HiddenStates) -> None:
        """Process one batch: text (B, N, D) and speech (B, M, D) at every layer."""
        ...


@torch.no_grad()
def pooled_states(
    model: SpeechLLM, batches: Iterable[Batch], *, bos: bool = False, observers: Sequence[Observer] = ()
) -> PooledStates:
    """Run the speech and the transcripts of ``batches`` through the LLM and pool the states of every layer.

    Puts the model in eval mode. ``bos`` adds the BOS token before both sides, as in `LLM.hidden_states`. The result
    takes 2·(layers + 1)·N·D float32 values on the CPU; the other tensors are freed after each batch. Raises `DataError`
    if there are no batches.
    """
    model.eval()
    layers = range(model.llm.num_layers + 1)
    parts = []
    for batch in batches:
        heard = aligned(model.projector, model.speech(batch))
        text, speech = (model.llm.hidden_states(embeds, layers, bos=bos) for embeds in (model.text(batch), heard))
        for observer in observers:
            observer.observe(batch, text, speech)
        pooled_text, pooled_speech = (
            {layer: mean_pool(side.states[layer], side.mask).cpu() for layer in layers} for side in (text, speech)
        )
        parts.append(PooledStates(pooled_text, pooled_speech, [sample.text or "" for sample in batch.samples]))
    if not parts:
        raise DataError("there are no utterances to measure: pass at least one batch")
    return PooledStates.joined(parts)


@torch.no_grad()
def encoded(model: SpeechLLM, batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yield the batches with encoder frames instead of waveforms, so that the encoder runs once for all observers."""
    for batch in batches:
        if batch.frames is None and batch.waveforms is not None:
            frames = model.encoder(batch.waveforms)
            frames = Padded(frames.values.float(), frames.mask)  # the projector's type, whatever the encoder's
            batch = replace(batch, frames=frames, waveforms=None)
        yield batch


class KeptStates:
    """Observe the hidden states of every position of a few utterances, for figures of their alignment."""

    def __init__(self, ids: Iterable[str], layers: Sequence[int]) -> None:
        self.ids, self.layers = set(ids), layers
        self.text: dict[str, dict[int, Tensor]] = {}  # utterance: layer: (N, D)
        self.speech: dict[str, dict[int, Tensor]] = {}  # utterance: layer: (M, D)
        self.tokens: dict[str, list[int]] = {}  # utterance: ids of the N transcript tokens

    def observe(self, batch: Batch, text: HiddenStates, speech: HiddenStates) -> None:
        """Copy the states of the selected utterances to the CPU."""
        for row, sample in enumerate(batch.samples):
            if sample.id not in self.ids:
                continue
            for kept, side in ((self.text, text), (self.speech, speech)):
                kept[sample.id] = {k: side.states[k][row, side.mask[row]].float().cpu() for k in self.layers}
            if batch.text is not None:
                self.tokens[sample.id] = batch.text.values[row, batch.text.mask[row]].tolist()

    def plans(self, utterance: str) -> dict[int, Tensor]:
        """Return the transport plan (N, M) of each layer between text and speech tokens; every row sums to 1."""
        text, speech = self.text[utterance], self.speech[utterance]
        return {k: len(text[k]) * transport_plan(text[k], speech[k], tolerance=PLAN_TOLERANCE) for k in text}
