"""Next-token loss on chat turns: ASR pretraining, and fine-tuning on tasks."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from ossicle.batch import Batch, LossOutput, Padded
from ossicle.models.speech_llm import IGNORE, SpeechLLM
from ossicle.objectives.base import detached
from ossicle.section import section


def states_before_labels(model: SpeechLLM, embeds: Padded, labels: Tensor) -> Tensor:
    """Final hidden states (K, D) of the positions of ``embeds`` (B, L, D) whose next token is one of the K labels.

    They come one sequence after the other, as ``labels[:, 1:][labels[:, 1:] != IGNORE]`` does.
    """
    last = model.llm.num_layers
    hidden = model.llm.hidden_states(embeds, [last]).states[last]
    return hidden[:, :-1][labels[:, 1:] != IGNORE]


def token_losses(model: SpeechLLM, embeds: Padded, labels: Tensor) -> Tensor:
    """Negative log-probability (K,) of each of the K labels (B, L), in nats; -100 marks none."""
    logits = model.llm.logits(states_before_labels(model, embeds, labels))  # (K, vocabulary)
    targets = labels[:, 1:]
    return F.cross_entropy(logits.float(), targets[targets != IGNORE], reduction="none")


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
    needs_mixed = False

    def build(self) -> NextToken:
        """The objective to call: itself."""
        return self

    def __call__(self, model: SpeechLLM, batch: Batch) -> LossOutput:
        """Loss in nats per token."""
        if batch.chat is None:
            raise ValueError("the batch has no chat turns")
        embeds, labels = model.chat_inputs(batch.chat, model.speech(batch))
        losses = token_losses(model, embeds, labels)
        if self.average == "example":
            counts = (labels[:, 1:] != IGNORE).sum(1)  # (B,)
            loss = (losses / counts.repeat_interleave(counts)).sum() / len(counts)
        else:
            loss = losses.mean()
        return LossOutput(loss, detached({"next_token": loss}))
