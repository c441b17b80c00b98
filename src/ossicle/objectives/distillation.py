"""Objective of distillation: what the LLM says to the speech follows what it says to the transcript.

Shape legend: K labels of the whole batch, D width of the LLM.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ossicle.batch import Batch, LossOutput
from ossicle.losses.distillation import kl_divergence
from ossicle.models.speech_llm import SpeechLLM
from ossicle.objectives.next_token import answer_inputs, chat_of, states_before_labels
from ossicle.section import section

CHUNK_LOGITS = 2**25
"""Most logits that `mean_divergence` holds in memory at once, of teacher and of student (128 MB each in float32). A
vocabulary of 128,000 reaches this with 260 tokens. Further logits are computed in chunks, and again in the backward
pass."""


def mean_divergence(
    model: SpeechLLM, teacher: Tensor, student: Tensor, divergence: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Return the mean of ``divergence`` over K positions, a scalar with a gradient for the ``student``.

    ``teacher`` and ``student`` (K, D) are final hidden states. ``divergence`` maps their logits (k, vocabulary) to (k,)
    values. It is computed in chunks of `CHUNK_LOGITS`.
    """

    def total(from_text: Tensor, from_speech: Tensor) -> Tensor:
        with torch.no_grad():
            target = model.llm.logits(from_text)
        return divergence(target, model.llm.logits(from_speech)).sum()

    size = max(1, CHUNK_LOGITS // model.llm.model.config.vocab_size)
    pairs = list(zip(torch.split(teacher, size), torch.split(student, size), strict=True))
    if len(pairs) == 1:
        sums = [total(teacher, student)]
    else:
        sums = [checkpoint(total, *pair, use_reentrant=False) for pair in pairs]
    return torch.stack(sums).sum() / len(teacher)


@section
class Distillation:
    """Match the next-token distribution given speech to the one given the transcript.

    The loss is KL(teacher || student), averaged over the tokens of the answers, end of turn included. The student is
    the LLM with the speech in its chat turn. The teacher is the same LLM, without a graph, with the tokens of the
    transcript in the same place. The answer is the sample's, or the transcript if the sample has none. Source: the loss
    of Ultravox, as a baseline; not in the paper.
    """

    name: Literal["distillation"] = "distillation"
    temperature: float = Field(default=1.0, gt=0, le=1e3)
    """Temperature of both distributions."""
    average: Literal["token", "batch"] = "token"
    """Unit of the average, as in `NextToken`."""

    needs_negatives = False
    needs_mixed = False

    def build(self) -> Distillation:
        """Return the objective itself, since it has no parameters."""
        return self

    def __call__(self, model: SpeechLLM, batch: Batch) -> LossOutput:
        """Return the loss in nats per token."""
        chat = chat_of(batch)
        with torch.no_grad():
            teacher = states_before_labels(model, *answer_inputs(model, chat, model.text(batch)))  # (K, D)
        student = states_before_labels(model, *answer_inputs(model, chat, model.speech(batch)))  # (K, D)

        def divergence(from_text: Tensor, from_speech: Tensor) -> Tensor:
            return kl_divergence(from_text, from_speech, temperature=self.temperature)

        mean = mean_divergence(model, teacher, student, divergence)
        loss = batch.weighted(mean, "answers") if self.average == "token" else mean
        return LossOutput(loss, {"distillation": loss.detach()})
