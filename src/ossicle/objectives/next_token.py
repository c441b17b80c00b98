"""Loss on the next token of an answer: ASR pretraining, and fine-tuning on tasks.

Shape legend: B chat turns, L positions, K labels of the whole batch, D width of the LLM.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from ossicle.batch import Batch, Chat, LossOutput, Padded
from ossicle.errors import DataError
from ossicle.models.packing import Prefix
from ossicle.models.speech_llm import IGNORE, SpeechLLM
from ossicle.section import section


def states_before_labels(model: SpeechLLM, embeds: Padded, labels: Tensor, prefix: Prefix = ()) -> Tensor:
    """Return the final hidden states (K, D) of the positions of ``embeds`` (B, L, D) that predict a label.

    Their order is that of ``labels[:, 1:][labels[:, 1:] != IGNORE]`` for ``labels`` (B, L). The LLM has read ``prefix``
    (`LLM.prefix`) before every sequence.
    """
    last = model.llm.num_layers
    hidden = model.llm.hidden_states(embeds, [last], prefix=prefix).states[last]
    return hidden[:, :-1][(labels[:, 1:] != IGNORE).nonzero(as_tuple=True)]  # by a mask, the GPU would wait twice


def answer_inputs(model: SpeechLLM, chat: Chat, heard: Padded) -> tuple[Padded, Tensor, Prefix]:
    """Return `SpeechLLM.chat_inputs` about ``heard`` (B, M, D) after a prefix, and the prefix, empty if there is none.

    The LLM computes the tokens before the speech once, not in every step.
    """
    prefix = model.llm.prefix(chat.before)
    return *model.chat_inputs(chat, heard, after_prefix=bool(prefix)), prefix


def token_losses(model: SpeechLLM, embeds: Padded, labels: Tensor, prefix: Prefix = ()) -> Tensor:
    """Return the negative log-probability (K,) of each of the K labels in ``labels`` (B, L), in nats."""
    logits = model.llm.logits(states_before_labels(model, embeds, labels, prefix))  # (K, vocabulary)
    targets = labels[:, 1:]
    places = (targets != IGNORE).nonzero_static(size=len(logits)).unbind(1)
    return F.cross_entropy(logits.float(), targets[places], reduction="none")


def chat_of(batch: Batch) -> Chat:
    """Return the chat turns of ``batch``. Raises `DataError` if it was collated without them."""
    if batch.chat is None:
        raise DataError("the batch has no chat turns: collate it with a prompter, see ossicle.data.collate")
    return batch.chat


@section
class NextToken:
    """Next-token loss on the answer and its end of turn, given speech and instruction.

    This is the loss of fine-tuning. For samples without a task the answer is the transcript and the instruction asks
    for it, which is ASR pretraining. Source: METHOD sections 2 and 3.
    """

    name: Literal["next_token"] = "next_token"
    average: Literal["token", "batch", "example"] = "token"
    """Unit of the average: ``token`` averages over all labels of the optimiser step, in all its batches and processes.
    ``batch`` averages over the labels of each batch and then over batches, as the paper's code does. ``example``
    averages over the labels of each example first, so that short answers have the same weight as long ones."""

    needs_negatives = False
    needs_mixed = False

    def build(self) -> NextToken:
        """Return the objective itself, since it has no parameters."""
        return self

    def __call__(self, model: SpeechLLM, batch: Batch) -> LossOutput:
        """Return the loss in nats per token."""
        embeds, labels, prefix = answer_inputs(model, chat_of(batch), model.speech(batch))
        losses = token_losses(model, embeds, labels, prefix)
        if self.average == "example":
            counts = (labels[:, 1:] != IGNORE).sum(1)  # (B,)
            loss = batch.weighted((losses / counts.repeat_interleave(counts)).sum() / len(counts), "examples")
        else:
            loss = batch.weighted(losses.mean(), "answers") if self.average == "token" else losses.mean()
        return LossOutput(loss, {"next_token": loss.detach()})
