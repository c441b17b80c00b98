"""Distillation: the LLM that hears the speech is to expect what the LLM that reads the transcript expects."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ossicle.batch import Batch, LossOutput
from ossicle.losses.distillation import kl_divergence
from ossicle.models.speech_llm import SpeechLLM
from ossicle.objectives.base import detached, sum_of
from ossicle.objectives.next_token import states_before_labels
from ossicle.section import section

CHUNK_LOGITS = 2**25
"""Logits in memory at once, of teacher and of student (128 MB each in float32): a vocabulary of 128,000 makes as many
for 260 tokens. What is more is made chunk by chunk, and again in the backward pass."""


@section
class Distillation:
    """KL(teacher || student) over the next token, averaged over the tokens of the answers, end of turn included.

    The student is the LLM with the speech in its chat turn; the teacher, without a graph, the same LLM with the tokens
    of the transcript in that place, and so with the same answer after it. The answer is the sample's, or the transcript
    where it has none (then the LLM is asked to repeat it). Source: the loss of Ultravox; a baseline, not in the paper.
    """

    name: Literal["distillation"] = "distillation"
    temperature: float = Field(default=1.0, gt=0)
    """Of both distributions."""

    needs_negatives = False
    needs_mixed = False

    def build(self) -> Distillation:
        """The objective to call: itself."""
        return self

    def __call__(self, model: SpeechLLM, batch: Batch) -> LossOutput:
        """Loss in nats per token."""
        if batch.chat is None:
            raise ValueError("the batch has no chat turns")
        with torch.no_grad():
            teacher = states_before_labels(model, *model.chat_inputs(batch.chat, model.text(batch)))  # (K, D)
        student = states_before_labels(model, *model.chat_inputs(batch.chat, model.speech(batch)))  # (K, D)

        def divergence(read: Tensor, heard: Tensor) -> Tensor:
            with torch.no_grad():
                expected = model.llm.logits(read)
            return kl_divergence(expected, model.llm.logits(heard), temperature=self.temperature).sum()

        size = max(1, CHUNK_LOGITS // model.llm.model.config.vocab_size)
        pairs = list(zip(teacher.split(size), student.split(size), strict=True))
        if len(pairs) == 1:
            sums = [divergence(teacher, student)]
        else:
            sums = [checkpoint(divergence, read, heard, use_reentrant=False) for read, heard in pairs]
        loss = sum_of(sums) / len(teacher)
        return LossOutput(loss, detached({"distillation": loss}))
