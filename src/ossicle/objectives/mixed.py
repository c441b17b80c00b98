"""Objectives on mixed sequences, in which some spans of an utterance are text and the others speech.

Shape legend: B utterances, N tokens of their text, L positions of a mixed sequence, D width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field, model_validator
from torch import Tensor

from ossicle.batch import Batch, LossOutput, Mixed, Padded
from ossicle.distributed import gather_columns, gather_ragged, gather_rows
from ossicle.errors import ConfigError, DataError
from ossicle.losses.contrastive import Direction, cosine, info_nce, mean_pool, token_info_nce
from ossicle.models.frozen import Layers
from ossicle.models.projectors import aligned
from ossicle.models.speech_llm import IGNORE, SpeechLLM
from ossicle.objectives.contrastive import weighted_sum, weights_by_layer
from ossicle.objectives.next_token import token_losses
from ossicle.section import section


def mixed_of(batch: Batch) -> Mixed:
    """Return the mixed sequences of ``batch``. Raises `DataError` if it was collated without them."""
    if batch.mixed is None:
        raise DataError("the batch has no mixed sequences: collate it with a mixer, see ossicle.data.mixed")
    return batch.mixed


@section
class MixedNextToken:
    """Next-token loss on the text of mixed sequences (mixed-nwp): BOS + spans + EOS, without a prompt.

    Labels are the tokens of the text spans and EOS. Speech and the first position are never predicted. Source: METHOD
    section 2.
    """

    name: Literal["mixed_next_token"] = "mixed_next_token"
    average: Literal["token", "batch"] = "token"
    """Unit of the average: ``token`` averages over all labels of the optimiser step, in all its batches and processes.
    ``batch`` averages over the labels of each batch and then over batches, as the paper's code does."""

    needs_negatives = False
    needs_mixed = True

    def build(self) -> MixedNextToken:
        """Return the objective itself, since it has no parameters."""
        return self

    def __call__(self, model: SpeechLLM, batch: Batch) -> LossOutput:
        """Return the loss in nats per token."""
        mixed = mixed_of(batch)
        embeds, tokens = model.mixed_inputs(mixed)
        mean = token_losses(model, embeds, labels_of(mixed, tokens)).mean()
        loss = batch.weighted(mean, "mixed") if self.average == "token" else mean
        return LossOutput(loss, {"mixed_next_token": loss.detach()})


def labels_of(mixed: Mixed, tokens: Tensor) -> Tensor:
    """Return the labels (B, L) of mixed sequences: the text after the first position, EOS included; -100 elsewhere.

    ``tokens`` (B, L) is the index in ``mixed.text`` of the token at each position, -1 for speech and padding.
    """
    labels = mixed.text.values.gather(1, tokens.clamp(min=0)).masked_fill(tokens < 0, IGNORE)
    labels[:, 0] = IGNORE  # BOS, or the first token if there is none: no position precedes it
    return labels


@section
class MixedContrastive:
    """Contrastive loss between each mixed sequence and the same words as text alone.

    total = sum over layers of weight_l * loss of the states at layer l, at positions where both sequences have the same
    tokens. Both are BOS + words + EOS, without punctuation, and the text runs through the LLM without a graph.
    ``subword`` compares the tokens of an utterance with each other, so that it needs no other utterances and gathers
    none from other processes. Source: METHOD section 2.
    """

    name: Literal["mixed_contrastive"] = "mixed_contrastive"
    similarity: Literal["cosine", "wasserstein", "subword"] = "cosine"
    """Similarity of the two sequences: ``cosine`` of mean-pooled states, or ``wasserstein``, the negative
    optimal-transport distance, both with InfoNCE over utterances. ``subword`` is InfoNCE over the tokens of each
    utterance by their cosine."""
    pool: Literal["spans", "text", "all"] = "spans"
    """Positions to compare: ``spans`` is the tokens of the text spans; ``text`` adds BOS and EOS, as the official code
    does; ``all`` is every position, speech included. The official code uses ``all`` at the embedding layer, where the
    same tokens have the same states and give no gradient."""
    layers: Layers = "all"
    """Hidden states to compare: ``embeddings`` (layer 0), ``all`` (every hidden state of the LLM), one layer, or a list
    of layers."""
    layer_weights: list[float] | None = None
    """Weight of each layer's loss, in the order of ``layers``. By default all weights are 1."""
    temperature: float | None = Field(default=None, gt=0, le=1e3)
    """Temperature of the softmax. The default is the paper's: 0.5 for ``subword`` and 0.1 otherwise."""
    direction: Direction = "text_to_speech"
    """Direction of the loss over utterances, as in `Contrastive`. ``subword`` has ``text_to_speech`` only."""

    needs_mixed = True

    @model_validator(mode="after")
    def _check(self) -> MixedContrastive:
        if self.similarity == "subword" and self.pool == "all":
            raise ConfigError("subword compares the same tokens in both sequences: set pool=spans or pool=text")
        if self.similarity == "subword" and self.direction != "text_to_speech":
            raise ConfigError("subword has one direction: leave direction out")
        if self.layers in ("embeddings", 0, [0]) and self.pool != "all":
            raise ConfigError("at the embeddings equal tokens have equal states and nothing trains: set pool=all")
        return self

    @property
    def needs_negatives(self) -> bool:
        """True if the negatives are other utterances; False if they are other tokens of the utterance."""
        return self.similarity != "subword"

    def build(self) -> MixedContrastive:
        """Return the objective itself, since it has no parameters."""
        return self

    def __call__(self, model: SpeechLLM, batch: Batch) -> LossOutput:
        """Return the loss and one part per layer."""
        mixed = mixed_of(batch)
        weights = weights_by_layer(self.layers, self.layer_weights, model.llm.num_layers)
        spans = aligned(model.projector, model.spans(mixed))
        embeds, tokens = model.mixed_inputs(replace(mixed, speech=spans))
        mixed_states = model.llm.hidden_states(embeds, weights).states
        text_states = model.text_states(replace(batch, text=mixed.text), list(weights)).states
        text_mask, mixed_mask = self._compared(mixed, embeds.mask, tokens)
        parts = {
            f"mixed_contrastive/{layer}": self._loss(
                Padded(text_states[layer], text_mask), Padded(mixed_states[layer], mixed_mask)
            )
            for layer in weights
        }
        return weighted_sum(parts, list(weights.values()))

    def _compared(self, mixed: Mixed, mask: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return masks of the positions of the text (B, N) and of the mixed sequences (B, L) that are compared."""
        if self.pool == "all":
            return mixed.text.mask, mask
        compared = mixed.written & mixed.words if self.pool == "spans" else mixed.written
        return compared, compared.gather(1, tokens.clamp(min=0)) & (tokens >= 0)

    def _loss(self, text: Padded, mixed: Padded) -> Tensor:
        """Return the loss of one layer, given its states of ``text`` (B, N, D) and ``mixed`` (B, L, D)."""
        temperature = self.temperature or (0.5 if self.similarity == "subword" else 0.1)
        # The losses compute in float32 under autocast too: states of the same tokens differ little.
        if self.similarity == "subword":
            return token_info_nce(text.values, text.mask, mixed.values, mixed.mask, temperature=temperature)
        if self.similarity == "cosine":
            texts = gather_rows(mean_pool(text.values, text.mask))
            columns = cosine(texts, mean_pool(mixed.values, mixed.mask))
        else:
            # Imported here because few runs use the solver.
            from ossicle.losses.sinkhorn import wasserstein_similarity

            texts, mask = gather_ragged(text.values), gather_ragged(text.mask)
            columns = wasserstein_similarity(texts, mask, mixed.values, mixed.mask)
        return info_nce(gather_columns(columns), temperature=temperature, direction=self.direction)
