"""Contrastive pretraining: the hidden states of speech and of its transcript, pulled together.

Shape legend: B utterances, B_all those of all processes, K layers, D width.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ossicle.batch import Batch, HiddenStates, LossOutput
from ossicle.distributed import gather_columns, gather_ragged
from ossicle.losses.contrastive import Direction, info_nce, mean_pool
from ossicle.losses.sinkhorn import wasserstein_similarity
from ossicle.models.speech_llm import SpeechLLM
from ossicle.objectives.base import detached, sum_of
from ossicle.section import section

Layers = Literal["embeddings", "all"] | int | list[int]


@section
class Contrastive:
    """Pull the LLM's hidden states of speech and of its transcript together, apart from those of other utterances.

    total = sum over layers of weight_l * InfoNCE(sim(text, speech at layer l) / temperature); text and speech run
    through the frozen LLM separately, the text without a graph. Where several processes train, each text is compared
    with the speech of all of them. Source: METHOD section 2.
    """

    name: Literal["contrastive"] = "contrastive"
    similarity: Literal["cosine", "wasserstein"] = "cosine"
    """Of mean-pooled states, or minus the optimal-transport distance between the states of all tokens."""
    layers: Layers = "all"
    """``embeddings`` (layer 0), ``all`` (every hidden state of the LLM), one layer or a list of layers."""
    layer_weights: list[float] | None = None
    """One weight per layer, in the order of ``layers``; default: 1 each, as in the paper."""
    temperature: float = Field(default=0.1, gt=0)
    learn_temperature: bool = False
    """Train the temperature, from ``temperature`` on; not in the paper."""
    direction: Direction = "text_to_speech"
    """Which side picks among the other; the paper's text picks its speech."""
    position_shift: int = Field(default=0, ge=0)
    """A random offset below this is added to the position ids of both sides of a batch; the paper's variant has 400."""
    bos: bool = False
    """Let the LLM read its begin-of-sequence token before both sides, and leave it out of the comparison: without one,
    the first position serves as its attention sink and dominates the mean at middle layers. Not in the paper."""
    bank: int = Field(default=0, ge=0)
    """Further texts of ``data.cache_text`` as negatives of each utterance's speech (cosine, speech_to_text or
    symmetric); they never go stale, since the LLM is frozen. Not in the paper."""

    needs_negatives = True
    needs_mixed = False

    def build(self) -> Contrastive | LearnedTemperature:
        """The objective to call: itself, unless a part of it trains."""
        return LearnedTemperature(self) if self.learn_temperature else self

    def layer_list(self, num_layers: int) -> list[int]:
        """The layers to compare in an LLM of ``num_layers`` layers. Raises `ValueError` for weights that do not fit."""
        match self.layers:
            case "embeddings":
                layers = [0]
            case "all":
                layers = list(range(num_layers + 1))
            case int(layer):
                layers = [layer]
            case list(listed):
                layers = listed
        if self.layer_weights is not None and len(self.layer_weights) != len(layers):
            raise ValueError(f"objective.layer_weights has {len(self.layer_weights)} entries for {len(layers)} layers")
        return layers

    def read_text(self, model: SpeechLLM, batch: Batch) -> None:
        """Look up what the loss compares speech with, so that the model's cache keeps it."""
        look_up = model.pooled_text if self.similarity == "cosine" else model.text_states
        look_up(batch, sorted(set(self.layer_list(model.llm.num_layers))), bos=self.bos)

    def __call__(self, model: SpeechLLM, batch: Batch, temperature: Tensor | None = None) -> LossOutput:
        """Loss and one part per layer; ``temperature`` () replaces the configured one."""
        layers = self.layer_list(model.llm.num_layers)
        weights = self.layer_weights or [1.0] * len(layers)
        shift = int(torch.randint(self.position_shift, ())) if self.position_shift and model.training else 0
        speech = model.llm.hidden_states(model.speech(batch), layers, bos=self.bos, start=shift)
        compare = self._cosine if self.similarity == "cosine" else self._wasserstein
        similarity = compare(model, batch, speech, shift)
        scale = self.temperature if temperature is None else temperature
        parts = {
            f"contrastive/{layer}": info_nce(similarity[layer], temperature=scale, direction=self.direction)
            for layer in layers
        }
        total = sum_of(weight * part for weight, part in zip(weights, parts.values(), strict=True))
        return LossOutput(total, detached(parts))

    def _cosine(self, model: SpeechLLM, batch: Batch, speech: HiddenStates, shift: int) -> dict[int, Tensor]:
        """Per layer (B_all, B_all), with more rows where there is a bank."""
        layers = list(speech.states)
        text = model.pooled_text(batch, layers, bos=self.bos, start=shift)  # (K, B, D)
        texts = gather_ragged(text.transpose(0, 1)).transpose(0, 1)  # (K, B_all, D)
        if self.bank:
            texts = torch.cat([texts, self._banked(model, batch, layers)], 1)
        pooled = torch.stack([mean_pool(state, speech.mask) for state in speech.states.values()])
        similarity = F.normalize(texts, dim=-1) @ F.normalize(pooled, dim=-1).mT  # (K, B_all, B)
        return {layer: gather_columns(columns) for layer, columns in zip(layers, similarity, strict=True)}

    def _wasserstein(self, model: SpeechLLM, batch: Batch, speech: HiddenStates, shift: int) -> dict[int, Tensor]:
        """Per layer (B_all, B_all)."""
        text = model.text_states(batch, list(speech.states), bos=self.bos, start=shift)
        mask = gather_ragged(text.mask)
        return {
            layer: gather_columns(wasserstein_similarity(gather_ragged(text.states[layer]), mask, state, speech.mask))
            for layer, state in speech.states.items()
        }

    def _banked(self, model: SpeechLLM, batch: Batch, layers: list[int]) -> Tensor:
        if model.text_cache is None or batch.text is None:
            raise ValueError("objective.bank draws from cached texts: set data.cache_text=true")
        if self.direction == "text_to_speech":
            raise ValueError("objective.bank holds negatives for speech: set objective.direction=symmetric")
        return model.text_cache.bank(self.bank, layers, bos=self.bos, without=batch.text)


class LearnedTemperature(nn.Module):
    """A contrastive objective whose temperature trains, as exp(log_temperature)."""

    needs_negatives = True
    needs_mixed = False

    def __init__(self, objective: Contrastive) -> None:
        super().__init__()
        self.objective = objective
        self.log_temperature = nn.Parameter(torch.tensor(math.log(objective.temperature)))

    def forward(self, model: SpeechLLM, batch: Batch) -> LossOutput:
        """The loss at the present temperature, which is one of the parts."""
        temperature = self.log_temperature.exp()
        output = self.objective(model, batch, temperature)
        return LossOutput(output.total, output.parts | {"temperature": temperature.detach()})
