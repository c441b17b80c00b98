"""Next-token loss on chat turns: ASR pretraining, and fine-tuning on tasks."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F

from ossicle.batch import Batch, LossOutput
from ossicle.models.speech_llm import IGNORE, SpeechLLM
from ossicle.objectives.base import detached
from ossicle.section import section


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

    def build(self) -> NextToken:
        """The objective to call: itself."""
        return self

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
        return LossOutput(loss, detached({"next_token": loss}))
