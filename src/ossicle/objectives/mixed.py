"""Objectives on mixed sequences: some spans of an utterance are text, the others speech, each encoded by itself.

Shape legend: B utterances, N tokens of their text, L positions of a mixed sequence, D width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from ossicle.batch import Batch, LossOutput, Mixed, Padded
from ossicle.distributed import gather_columns, gather_ragged, gather_rows
from ossicle.losses.contrastive import Direction, info_nce, mean_pool, token_info_nce
from ossicle.losses.sinkhorn import wasserstein_similarity
from ossicle.models.speech_llm import IGNORE, SpeechLLM
from ossicle.objectives.base import detached, sum_of
from ossicle.objectives.contrastive import Contrastive, Layers
from ossicle.objectives.next_token import token_losses
from ossicle.section import section


def mixed_of(batch: Batch) -> Mixed:
    """The mixed sequences of ``batch``; raises `ValueError` where it was collated without."""
    if batch.mixed is None:
        raise ValueError("the batch has no mixed sequences: collate it with a mixer, see ossicle.data.mixed")
    return batch.mixed


@section
class MixedNextToken:
    """Next-token loss on the text of mixed sequences (mixed-nwp): BOS + spans + EOS, no prompt.

    Labels are the tokens of the text spans, and EOS: it is the last token of the text, and has no other effect on a
    causal LLM. Speech is never predicted, nor is what comes first. Source: METHOD section 2.
    """

    name: Literal["mixed_next_token"] = "mixed_next_token"

    needs_negatives = False
    needs_mixed = True

    def build(self) -> MixedNextToken:
        """The objective to call: itself."""
        return self

    def __call__(self, model: SpeechLLM, batch: Batch) -> LossOutput:
        """Loss in nats per token, averaged over all labels of the batch."""
        mixed = mixed_of(batch)
        embeds, held = model.mixed_inputs(mixed)
        loss = token_losses(model, embeds, labels_of(mixed, held)).mean()
        return LossOutput(loss, detached({"mixed_next_token": loss}))


def labels_of(mixed: Mixed, held: Tensor) -> Tensor:
    """Labels (B, L) of mixed sequences whose positions hold the tokens ``held`` (B, L): the text after the first
    position, EOS included; -100 elsewhere.
    """
    labels = mixed.text.values.gather(1, held.clamp(min=0)).masked_fill(held < 0, IGNORE)
    labels[:, 0] = IGNORE  # BOS, or in its absence the first token: nothing comes before it
    return labels


@section
class MixedContrastive:
    """Contrast each mixed sequence with the same words all as text, where both hold the same tokens.

    total = sum over layers of weight_l * loss of the states at layer l. Both sequences are BOS + words + EOS, without
    punctuation; the text runs through the LLM without a graph. Source: METHOD section 2. "Subword" compares the tokens
    of an utterance with each other, needs no other utterances, and never gathers any from other processes.
    """

    name: Literal["mixed_contrastive"] = "mixed_contrastive"
    similarity: Literal["cosine", "wasserstein", "subword"] = "cosine"
    """InfoNCE over utterances by the cosine of mean-pooled states or by minus the optimal-transport distance, or
    ("subword") over the tokens of each utterance by their cosine."""
    pool: Literal["spans", "text", "all"] = "spans"
    """What is compared: the tokens of the text spans; those, BOS and EOS (the official code); or every position, speech
    included (the official code at the embedding layer, where equal tokens have equal states and teach nothing)."""
    layers: Layers = "all"
    """``embeddings`` (layer 0), ``all`` (every hidden state of the LLM), one layer or a list of layers."""
    layer_weights: list[float] | None = None
    """One weight per layer, in the order of ``layers``; default: 1 each."""
    temperature: float | None = Field(default=None, gt=0)
    """Default: the paper's, 0.5 for ``subword`` and 0.1 otherwise."""
    direction: Direction = "text_to_speech"
    """Which side picks among the other; not for ``subword``, where a token of the text picks its own."""

    needs_mixed = True

    @model_validator(mode="after")
    def _check(self) -> MixedContrastive:
        if self.similarity == "subword" and self.pool == "all":
            raise ValueError("subword compares the same tokens in both sequences: set pool=spans or pool=text")
        if self.similarity == "subword" and self.direction != "text_to_speech":
            raise ValueError("subword has one direction: leave direction out")
        if self.layers in ("embeddings", 0, [0]) and self.pool != "all":
            raise ValueError("at the embeddings the same tokens have the same states, nothing trains: set pool=all")
        return self

    @property
    def needs_negatives(self) -> bool:
        """Whether other utterances are negatives, or the other tokens of an utterance."""
        return self.similarity != "subword"

    def build(self) -> MixedContrastive:
        """The objective to call: itself."""
        return self

    def __call__(self, model: SpeechLLM, batch: Batch) -> LossOutput:
        """Loss and one part per layer."""
        mixed = mixed_of(batch)
        sections = Contrastive(layers=self.layers, layer_weights=self.layer_weights)
        layers = sections.layer_list(model.llm.num_layers)
        embeds, held = model.mixed_inputs(mixed)
        heard = model.llm.hidden_states(embeds, layers).states
        read = model.text_states(replace(batch, text=mixed.text), layers).states
        text_mask, mixed_mask = self._compared(mixed, embeds.mask, held)
        parts = {
            f"mixed_contrastive/{layer}": self._loss(Padded(read[layer], text_mask), Padded(heard[layer], mixed_mask))
            for layer in layers
        }
        weights = self.layer_weights or [1.0] * len(layers)
        total = sum_of(weight * part for weight, part in zip(weights, parts.values(), strict=True))
        return LossOutput(total, detached(parts))

    def _compared(self, mixed: Mixed, mask: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
        """The positions of the text (B, N) and of the mixed sequences (B, L) that are compared."""
        if self.pool == "all":
            return mixed.text.mask, mask
        compared = mixed.written & mixed.words if self.pool == "spans" else mixed.written
        return compared, compared.gather(1, held.clamp(min=0)) & (held >= 0)

    def _loss(self, text: Padded, mixed: Padded) -> Tensor:
        """Of the states of one layer, (B, N, D) and (B, L, D)."""
        temperature = self.temperature or (0.5 if self.similarity == "subword" else 0.1)
        # The two sides differ little where they hold the same tokens: not in the precision of bfloat16.
        with torch.autocast(mixed.values.device.type, enabled=False):
            if self.similarity == "subword":
                return token_info_nce(text.values, text.mask, mixed.values, mixed.mask, temperature=temperature)
            if self.similarity == "cosine":
                texts = F.normalize(gather_rows(mean_pool(text.values, text.mask)), dim=-1)
                columns = texts @ F.normalize(mean_pool(mixed.values, mixed.mask), dim=-1).T
            else:
                texts, mask = gather_ragged(text.values), gather_ragged(text.mask)
                columns = wasserstein_similarity(texts, mask, mixed.values, mixed.mask)
            return info_nce(gather_columns(columns), temperature=temperature, direction=self.direction)
