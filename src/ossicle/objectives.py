"""What is minimised: every objective is called as ``objective(model, batch) -> LossOutput``.

An objective is a frozen configuration section that is its own implementation: to add one, write its loss as a pure
function in ``losses/``, a section here, and name it in `ObjectiveConfig`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal, Protocol

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ossicle.batch import Batch, LossOutput
from ossicle.losses.contrastive import info_nce, pooled_cosine
from ossicle.models.speech_llm import IGNORE, SpeechLLM
from ossicle.section import section

Layers = Literal["embeddings", "all"] | int | list[int]


class Objective(Protocol):
    """The seam between model and training loop."""

    @property
    def needs_negatives(self) -> bool:
        """Whether utterances are compared with each other.

        Batches then hold at least two and are drawn at random: negatives of equal length make length uninformative.
        """
        ...

    def __call__(self, model: SpeechLLM, batch: Batch) -> LossOutput:
        """Compute the loss of ``batch``."""
        ...


@section
class Contrastive:
    """Pull the LLM's hidden states of speech and of its transcript together, apart from those of other utterances.

    total = sum over layers of weight_l * InfoNCE(sim(text, speech at layer l) / temperature); text and speech run
    through the frozen LLM separately, the text without a graph. Source: METHOD section 2.
    """

    name: Literal["contrastive"] = "contrastive"
    layers: Layers = "all"
    """``embeddings`` (layer 0), ``all`` (every hidden state of the LLM), one layer or a list of layers."""
    layer_weights: list[float] | None = None
    """One weight per layer, in the order of ``layers``; default: 1 each, as in the paper."""
    temperature: float = Field(default=0.1, gt=0)

    needs_negatives = True

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

    def __call__(self, model: SpeechLLM, batch: Batch) -> LossOutput:
        """Loss and one part per layer."""
        layers = self.layer_list(model.llm.num_layers)
        weights = self.layer_weights or [1.0] * len(layers)
        with torch.no_grad():
            text = model.llm.hidden_states(model.text(batch), layers)
        speech = model.llm.hidden_states(model.speech(batch), layers)
        parts = {}
        for layer in layers:
            similarity = pooled_cosine(text.states[layer], text.mask, speech.states[layer], speech.mask)
            parts[f"contrastive/{layer}"] = info_nce(similarity, temperature=self.temperature)
        total = sum_of([weight * part for weight, part in zip(weights, parts.values(), strict=True)])
        return LossOutput(total, _detached(parts))


@section
class NextToken:
    """Next-token loss on the answer and its end of turn, given speech and instruction.

    This is fine-tuning, and ASR pretraining where samples have no task: they are asked for their transcript.
    Source: METHOD sections 2 and 3.
    """

    name: Literal["next_token"] = "next_token"
    average: Literal["token", "example"] = "token"
    """Over all label tokens of the batch (the paper), or first over those of each example, so that short answers weigh
    as much as long ones."""

    needs_negatives = False

    def __call__(self, model: SpeechLLM, batch: Batch) -> LossOutput:
        """Loss in nats per token."""
        if batch.chat is None:
            raise ValueError("the batch has no chat turns")
        embeds, labels = model.chat_inputs(batch.chat, model.speech(batch))
        last = model.llm.num_layers
        hidden = model.llm.hidden_states(embeds, [last]).states[last]
        targets = labels[:, 1:]
        labelled = targets != IGNORE
        logits = model.llm.logits(hidden[:, :-1][labelled])  # (K, vocabulary)
        losses = F.cross_entropy(logits.float(), targets[labelled], reduction="none")
        if self.average == "example":
            counts = labelled.sum(1)  # (B,)
            loss = (losses / counts.repeat_interleave(counts)).sum() / len(counts)
        else:
            loss = losses.mean()
        return LossOutput(loss, _detached({"next_token": loss}))


Single = Annotated[Contrastive | NextToken, Field(discriminator="name")]
"""Every objective that can be a summand: a new one is named here."""


@section
class Term:
    """One summand."""

    objective: Single
    weight: float = 1.0


@section
class Sum:
    """Weighted sum of objectives on the same batch; the speech is projected once."""

    name: Literal["sum"] = "sum"
    terms: list[Term] = Field(min_length=1)

    @property
    def needs_negatives(self) -> bool:
        """Whether any term does."""
        return any(term.objective.needs_negatives for term in self.terms)

    def __call__(self, model: SpeechLLM, batch: Batch) -> LossOutput:
        """Sum of the totals; parts of all terms."""
        batch = replace(batch, speech=model.speech(batch))
        outputs = [term.objective(model, batch) for term in self.terms]
        total = sum_of([term.weight * output.total for term, output in zip(self.terms, outputs, strict=True)])
        parts: dict[str, Tensor] = {}
        for i, output in enumerate(outputs):
            # Two terms may report a part of the same name, such as the same layer at two temperatures.
            parts |= {name if name not in parts else f"{name}#{i}": part for name, part in output.parts.items()}
        return LossOutput(total, parts)


ObjectiveConfig = Annotated[Single | Sum, Field(discriminator="name")]


def sum_of(terms: list[Tensor]) -> Tensor:
    """Sum of scalars."""
    return torch.stack(terms).sum()


def _detached(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: part.detach() for name, part in parts.items()}
