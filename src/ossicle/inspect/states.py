"""What the LLM makes of speech and of its transcript: mean-pooled hidden states per layer, for `alignment`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ossicle.batch import Batch, HiddenStates
from ossicle.inspect.transport import transport_plan
from ossicle.losses.contrastive import mean_pool
from ossicle.models.speech_llm import SpeechLLM

PLAN_TOLERANCE = 0.01
"""Error of a column's sum that no picture shows."""


@dataclass(frozen=True)
class PooledStates:
    """Pooled states of N utterances in the same order, by layer."""

    text: dict[int, Tensor]  # layer -> (N, D)
    speech: dict[int, Tensor]  # layer -> (N, D)
    transcripts: list[str]

    @classmethod
    def joined(cls, parts: Sequence[PooledStates]) -> PooledStates:
        """The utterances of all ``parts``, in their order."""
        text, speech = (
            {layer: torch.cat([side[layer] for side in sides]) for layer in sides[0]}
            for sides in ([part.text for part in parts], [part.speech for part in parts])
        )
        return cls(text, speech, [transcript for part in parts for transcript in part.transcripts])


class Watcher(Protocol):
    """Sees the states of every position, which `pooled_states` does not keep."""

    def see(self, batch: Batch, text: HiddenStates, speech: HiddenStates) -> None:
        """Both sides of a batch: (B, N, D) and (B, M, D) at every layer."""
        ...


@torch.no_grad()
def pooled_states(
    model: SpeechLLM, batches: Iterable[Batch], *, bos: bool = False, watchers: Sequence[Watcher] = ()
) -> PooledStates:
    """Run speech and transcripts of ``batches`` through the LLM and pool every layer. The model is in eval mode.

    ``bos``: before both, as in `LLM.hidden_states`. What is kept is 2·(layers + 1)·N·D float32 values on the CPU; all
    else is of one batch.
    """
    model.eval()
    layers = range(model.llm.num_layers + 1)
    parts = []
    for batch in batches:
        text, speech = (
            model.llm.hidden_states(embeds, layers, bos=bos) for embeds in (model.text(batch), model.speech(batch))
        )
        for watcher in watchers:
            watcher.see(batch, text, speech)
        written, heard = (
            {layer: mean_pool(side.states[layer], side.mask).cpu() for layer in layers} for side in (text, speech)
        )
        parts.append(PooledStates(written, heard, [sample.text or "" for sample in batch.samples]))
    if not parts:
        raise ValueError("there are no utterances to read: give at least one batch")
    return PooledStates.joined(parts)


@torch.no_grad()
def encoded(model: SpeechLLM, batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches with the encoder's frames in the place of waveforms, for those who look at both."""
    for batch in batches:
        if batch.frames is None and batch.waveforms is not None:
            batch = replace(batch, frames=model.encoder(batch.waveforms), waveforms=None)
        yield batch


class PooledFrames:
    """Keeps the mean of each utterance's encoder frames (N, D_encoder): what is there before the projector."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []

    def see(self, batch: Batch, text: HiddenStates, speech: HiddenStates) -> None:
        """Batches must bring frames, as those of `encoded` do."""
        if batch.frames is None:
            raise ValueError("the batch brings no frames: pass it through `encoded` first")
        self._parts.append(mean_pool(batch.frames.values, batch.frames.mask).cpu())

    @property
    def frames(self) -> Tensor:
        """Of all batches so far: (N, D_encoder)."""
        return torch.cat(self._parts)


class KeptStates:
    """Keeps the states of every position of a few utterances, for pictures of their alignment."""

    def __init__(self, ids: Iterable[str], layers: Sequence[int]) -> None:
        self.ids, self.layers = set(ids), layers
        self.text: dict[str, dict[int, Tensor]] = {}
        """Utterance -> layer -> (N, D)."""
        self.speech: dict[str, dict[int, Tensor]] = {}
        """Utterance -> layer -> (M, D)."""
        self.tokens: dict[str, list[int]] = {}
        """Utterance -> ids of the N tokens of its transcript."""

    def see(self, batch: Batch, text: HiddenStates, speech: HiddenStates) -> None:
        """Copy those utterances that are wanted to the CPU."""
        for row, sample in enumerate(batch.samples):
            if sample.id not in self.ids:
                continue
            for kept, side in ((self.text, text), (self.speech, speech)):
                kept[sample.id] = {k: side.states[k][row, side.mask[row]].float().cpu() for k in self.layers}
            if batch.text is not None:
                self.tokens[sample.id] = batch.text.values[row, batch.text.mask[row]].tolist()

    def plans(self, utterance: str) -> dict[int, Tensor]:
        """Layer -> which of M speech tokens stand for each of N text tokens: (N, M), every row sums to 1."""
        text, speech = self.text[utterance], self.speech[utterance]
        return {k: len(text[k]) * transport_plan(text[k], speech[k], tolerance=PLAN_TOLERANCE) for k in text}
