"""What the LLM makes of speech and of its transcript: mean-pooled hidden states per layer, for `alignment`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ossicle.batch import Batch
from ossicle.losses.contrastive import mean_pool
from ossicle.models.speech_llm import SpeechLLM


@dataclass(frozen=True)
class PooledStates:
    """Pooled states of N utterances in the same order, by layer."""

    text: dict[int, Tensor]  # layer -> (N, D)
    speech: dict[int, Tensor]  # layer -> (N, D)
    transcripts: list[str]


@torch.no_grad()
def pooled_states(model: SpeechLLM, batches: Iterable[Batch]) -> PooledStates:
    """Run speech and transcripts of ``batches`` through the LLM and pool every layer. The model is in eval mode."""
    model.eval()
    layers = range(model.llm.num_layers + 1)
    pooled: dict[str, dict[int, list[Tensor]]] = {side: {layer: [] for layer in layers} for side in ("text", "speech")}
    transcripts: list[str] = []
    for batch in batches:
        for side, embeds in (("text", model.text(batch)), ("speech", model.speech(batch))):
            hidden = model.llm.hidden_states(embeds, layers)
            for layer in layers:
                pooled[side][layer].append(mean_pool(hidden.states[layer], hidden.mask).cpu())
        transcripts += [sample.text or "" for sample in batch.samples]
    text, speech = ({layer: torch.cat(parts) for layer, parts in pooled[side].items()} for side in ("text", "speech"))
    return PooledStates(text, speech, transcripts)
