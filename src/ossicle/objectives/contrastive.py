"""Contrastive pretraining: align the LLM's hidden states of speech with those of its transcript.

Shape legend: B utterances, B_all utterances of all processes, K layers, D width.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ossicle.batch import Batch, HiddenStates, LossOutput
from ossicle.distributed import gather_columns, gather_ragged
from ossicle.errors import ConfigError
from ossicle.losses.contrastive import Direction, cosine, info_nce, mean_pool, standardised, without_first
from ossicle.models.frozen import Layers, resolve_layers
from ossicle.models.projectors import aligned
from ossicle.models.speech_llm import SpeechLLM
from ossicle.section import section


def weights_by_layer(layers: Layers, weights: list[float] | None, num_layers: int) -> dict[int, float]:
    """Return the weight of each layer that ``layers`` names in an LLM of ``num_layers`` layers.

    ``weights`` are in the order of ``layers``; None gives each layer the weight 1. Raises `ConfigError` for another
    number of weights than layers, and as `resolve_layers` does.
    """
    indices = resolve_layers(layers, num_layers)
    if weights is not None and len(weights) != len(indices):
        raise ConfigError(
            f"objective.layer_weights has {len(weights)} entries for {len(indices)} layers: give one for each layer"
        )
    return dict(zip(indices, weights or [1.0] * len(indices), strict=True))


def weighted_sum(parts: dict[str, Tensor], weights: list[float]) -> LossOutput:
    """Return the sum of ``parts``, each a scalar times its weight, and the detached parts for the log."""
    total = torch.stack([weight * part for weight, part in zip(weights, parts.values(), strict=True)]).sum()
    return LossOutput(total, {name: part.detach() for name, part in parts.items()})


@section
class Contrastive:
    """Contrastive loss between the LLM's hidden states of speech and of its transcript.

    Matching pairs are pulled together and apart from the other utterances of the batch:
    total = sum over layers of weight_l * InfoNCE(sim(text, speech at layer l) / temperature). Text and speech run
    through the LLM separately, the text without a graph. With several processes, each text is compared with the speech
    of all processes. Source: METHOD section 2.
    """

    name: Literal["contrastive"] = "contrastive"
    similarity: Literal["cosine", "wasserstein"] = "cosine"
    """Similarity of a text and an utterance: ``cosine`` of mean-pooled states, or ``wasserstein``, the negative
    optimal-transport distance between the states of all tokens."""
    layers: Layers = "all"
    """Hidden states to compare: ``embeddings`` (layer 0), ``all`` (every hidden state of the LLM), one layer, or a list
    of layers."""
    layer_weights: list[float] | None = None
    """Weight of each layer's loss, in the order of ``layers``. By default all weights are 1, as in the paper."""
    temperature: float = Field(default=0.1, gt=0, le=1e3)
    """Temperature of the softmax over utterances."""
    learn_temperature: bool = False
    """Train the temperature, starting at ``temperature``. Not in the paper."""
    direction: Direction = "text_to_speech"
    """Direction of the loss: ``text_to_speech`` classifies the speech of each text, as in the paper;
    ``speech_to_text`` classifies the text of each utterance; ``symmetric`` is the mean of both."""
    position_shift: int = Field(default=0, ge=0, le=10**6)
    """Upper bound of a random offset of the position ids, the same for all sequences of a batch. By default there is no
    offset; the paper's variant has 400."""
    bos: bool = False
    """Prepend the LLM's begin-of-sequence token to both sides, and leave it out of the comparison. Without it, the
    first position serves as attention sink and dominates the mean at middle layers. Not in the paper."""
    skip_first: bool = False
    """Leave the first position of both sides out of the comparison: the other remedy for the attention sink, for LLMs
    without a begin-of-sequence token. It reads text states of single tokens. Not in the paper."""
    standardise: bool = False
    """Standardise each dimension of the pooled states by the mean and the spread of the batch's texts, so that a few
    large dimensions do not decide every cosine. It requires ``cosine``. Not in the paper."""
    balance_every: int = Field(default=0, ge=0, le=10**6)
    """Divide the loss of each layer by the norm of its gradient at the speech tokens, which is measured every so many
    steps at the cost of one backward pass per layer. 0 turns it off. Not in the paper."""
    depth_steps: int = Field(default=0, ge=0, le=10**9)
    """Number of optimiser steps over which the compared layers grow evenly from the first of ``layers`` to all of them.
    While layer 0 is alone, the LLM does not run. By default all are compared from the start. Not in the paper."""
    bank: int = Field(default=0, ge=0, le=10**7)
    """Number of cached texts (``data.cache_text``) that are further negatives of each utterance. It requires ``cosine``
    and ``speech_to_text`` or ``symmetric``. Cached texts stay valid because the LLM is frozen. Not in the paper."""

    needs_negatives = True
    needs_mixed = False

    @model_validator(mode="after")
    def _check(self) -> Contrastive:
        if self.standardise and self.similarity != "cosine":
            raise ConfigError("objective.standardise acts on pooled states: set objective.similarity=cosine")
        if self.balance_every and self.learn_temperature:
            raise ConfigError("objective.balance_every does not go with learn_temperature: turn one of them off")
        if self.depth_steps and (self.layers == "embeddings" or isinstance(self.layers, int)):
            raise ConfigError("objective.depth_steps adds layer after layer: set objective.layers=all, or a list")
        return self

    def build(self) -> Contrastive | nn.Module:
        """Return the objective itself, or a module if the temperature trains or layers are balanced or added."""
        objective: Any = self
        if self.depth_steps:
            from ossicle.objectives.depth import GrowingDepth  # few runs use it

            objective = GrowingDepth(self)
        if self.balance_every:
            from ossicle.objectives.balanced import BalancedLayers  # few runs use it

            return BalancedLayers(objective)
        return LearnedTemperature(objective) if self.learn_temperature else objective

    def weights(self, num_layers: int) -> dict[int, float]:
        """Return the weight of each layer that is compared, see `weights_by_layer`."""
        return weights_by_layer(self.layers, self.layer_weights, num_layers)

    def read_text(self, model: SpeechLLM, batch: Batch) -> None:
        """Compute the text states that the loss needs, so that the model's cache stores them."""
        pooled = self.similarity == "cosine" and not self.skip_first
        look_up = model.pooled_text if pooled else model.text_states
        look_up(batch, sorted(self.weights(model.llm.num_layers)), bos=self.bos)

    def __call__(self, model: SpeechLLM, batch: Batch, temperature: Tensor | None = None) -> LossOutput:
        """Return the loss and one part per layer; ``temperature`` () replaces the configured one."""
        weights = self.weights(model.llm.num_layers)
        return weighted_sum(self.losses(model, batch, temperature), list(weights.values()))

    def losses(
        self, model: SpeechLLM, batch: Batch, temperature: Tensor | None = None, depth: int | None = None
    ) -> dict[str, Tensor]:
        """Return the loss of each layer, or of the first ``depth`` layers, without its weight."""
        weights = list(self.weights(model.llm.num_layers))[:depth]
        shift = int(torch.randint(self.position_shift, ())) if self.position_shift and model.training else 0
        tokens = aligned(model.projector, model.speech(batch))
        speech = model.llm.hidden_states(tokens, weights, bos=self.bos, start=shift)
        if self.skip_first:
            speech = replace(speech, mask=without_first(speech.mask))
        compare = self._cosine if self.similarity == "cosine" else self._wasserstein
        similarity = compare(model, batch, speech, shift)
        scale = self.temperature if temperature is None else temperature
        return {
            f"contrastive/{layer}": info_nce(similarity[layer], temperature=scale, direction=self.direction)
            for layer in weights
        }

    def _cosine(self, model: SpeechLLM, batch: Batch, speech: HiddenStates, shift: int) -> dict[int, Tensor]:
        """Return the similarity of texts and speech by layer (B_all, B_all), with more rows if there is a bank."""
        layers, read = list(speech.states), self._read_layers(model, speech)
        compared = [read.index(layer) for layer in layers]
        text = self._pooled(model, batch, read, shift)[compared]
        texts = gather_ragged(text.transpose(0, 1)).transpose(0, 1)  # (K, B_all, D)
        if self.bank:
            texts = torch.cat([texts, self._banked(model, batch, read)[compared]], 1)
        pooled = torch.stack([mean_pool(state, speech.mask) for state in speech.states.values()])
        if self.standardise:
            texts, pooled = standardised(texts, pooled)
        similarity = cosine(texts, pooled)  # (K, B_all, B)
        return {layer: gather_columns(columns) for layer, columns in zip(layers, similarity, strict=True)}

    def _wasserstein(self, model: SpeechLLM, batch: Batch, speech: HiddenStates, shift: int) -> dict[int, Tensor]:
        """Return the similarity of texts and speech by layer (B_all, B_all)."""
        from ossicle.losses.sinkhorn import wasserstein_similarity  # few runs use the solver

        text = model.text_states(batch, self._read_layers(model, speech), bos=self.bos, start=shift)
        mask = gather_ragged(without_first(text.mask) if self.skip_first else text.mask)
        return {
            layer: gather_columns(wasserstein_similarity(gather_ragged(text.states[layer]), mask, state, speech.mask))
            for layer, state in speech.states.items()
        }

    def _read_layers(self, model: SpeechLLM, speech: HiddenStates) -> list[int]:
        """Return the layers of the texts to look up: those of ``speech``, or all if a cache holds them together."""
        return list(speech.states) if model.text_cache is None else sorted(self.weights(model.llm.num_layers))

    def _pooled(self, model: SpeechLLM, batch: Batch, layers: list[int], shift: int) -> Tensor:
        """Return the mean states of the texts (K, B, D), in float32."""
        if not self.skip_first:
            return model.pooled_text(batch, layers, bos=self.bos, start=shift)
        text = model.text_states(batch, layers, bos=self.bos, start=shift)
        mask = without_first(text.mask)
        return torch.stack([mean_pool(text.states[layer], mask) for layer in layers])

    def _banked(self, model: SpeechLLM, batch: Batch, layers: list[int]) -> Tensor:
        if model.text_cache is None or batch.text is None:
            raise ConfigError("objective.bank draws from cached texts: set data.cache_text=true")
        if self.direction == "text_to_speech":
            raise ConfigError("objective.bank has negatives for speech only: set objective.direction=symmetric")
        if self.skip_first:
            raise ConfigError("objective.bank has means over all positions: set objective.skip_first=false")
        return model.text_cache.bank(self.bank, layers, bos=self.bos, without=batch.text)


class LearnedTemperature(nn.Module):
    """A contrastive objective that trains its temperature, as exp(log_temperature)."""

    needs_negatives = True
    needs_mixed = False

    def __init__(self, objective: Any) -> None:
        super().__init__()
        self.objective = objective
        self.log_temperature = nn.Parameter(torch.tensor(math.log(objective.temperature)))

    def forward(self, model: SpeechLLM, batch: Batch) -> LossOutput:
        """Return the loss at the present temperature; the temperature is one of the parts."""
        temperature = self.log_temperature.exp()
        output = self.objective(model, batch, temperature)
        return LossOutput(output.total, output.parts | {"temperature": temperature.detach()})
