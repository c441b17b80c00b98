"""Losses on the next token of chat turns: ASR pretraining, fine-tuning on tasks, and distillation.

Shape legend: B chat turns, L positions, K labels of the whole batch, D width of the LLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ossicle.batch import Batch, Chat, LossOutput, Padded
from ossicle.errors import DataError
from ossicle.models.packing import KeysValues
from ossicle.models.speech_llm import IGNORE, SpeechLLM
from ossicle.section import section

CHUNK_LOGITS = 2**25
"""Most logits that `Distillation` holds in memory at once, of teacher and of student (128 MB each in float32). A
vocabulary of 128,000 reaches this with 260 tokens. Further logits are computed in chunks, and again in the backward
pass."""


def states_before_labels(model: SpeechLLM, embeds: Padded, labels: Tensor, prefix: Sequence[KeysValues] = ()) -> Tensor:
    """Return the final hidden states (K, D) of the positions of ``embeds`` (B, L, D) that predict a label.

    Their order is that of ``labels[:, 1:][labels[:, 1:] != IGNORE]`` for ``labels`` (B, L). The LLM has read ``prefix``
    (`LLM.prefix`) before every sequence.
    """
    last = model.llm.num_layers
    hidden = model.llm.hidden_states(embeds, [last], prefix=prefix).states[last]
    return hidden[:, :-1][labels[:, 1:] != IGNORE]


def answer_states(model: SpeechLLM, chat: Chat, heard: Padded) -> tuple[Tensor, Tensor]:
    """Return the final hidden states (K, D) that predict the answers of ``chat`` about ``heard`` (B, M, D).

    Also return the labels (B, L), as in `states_before_labels`. The tokens before the speech are computed once for all
    batches, where the LLM allows it.
    """
    prefix = model.llm.prefix(chat.before)
    embeds, labels = model.chat_inputs(chat, heard, after_prefix=bool(prefix))
    return states_before_labels(model, embeds, labels, prefix), labels


def label_losses(model: SpeechLLM, states: Tensor, labels: Tensor) -> Tensor:
    """Return the negative log-probability (K,) in nats of each label in ``labels`` (B, L), given ``states`` (K, D)."""
    targets = labels[:, 1:]
    return F.cross_entropy(model.llm.logits(states).float(), targets[targets != IGNORE], reduction="none")


def token_losses(model: SpeechLLM, embeds: Padded, labels: Tensor) -> Tensor:
    """Return the negative log-probability (K,) of each of the K labels in ``labels`` (B, L), in nats."""
    return label_losses(model, states_before_labels(model, embeds, labels), labels)


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
        states, labels = answer_states(model, chat_of(batch), model.speech(batch))
        losses = label_losses(model, states, labels)
        if self.average == "example":
            counts = (labels[:, 1:] != IGNORE).sum(1)  # (B,)
            loss = batch.weighted((losses / counts.repeat_interleave(counts)).sum() / len(counts), "examples")
        else:
            loss = batch.weighted(losses.mean(), "answers") if self.average == "token" else losses.mean()
        return LossOutput(loss, {"next_token": loss.detach()})


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
        from ossicle.losses.distillation import kl_divergence  # used by this objective only

        chat = chat_of(batch)
        with torch.no_grad():
            teacher = answer_states(model, chat, model.text(batch))[0]  # (K, D)
        student = answer_states(model, chat, model.speech(batch))[0]  # (K, D)

        def divergence(from_text: Tensor, from_speech: Tensor) -> Tensor:
            with torch.no_grad():
                target = model.llm.logits(from_text)
            return kl_divergence(target, model.llm.logits(from_speech), temperature=self.temperature).sum()

        size = max(1, CHUNK_LOGITS // model.llm.model.config.vocab_size)
        pairs = list(zip(torch.split(teacher, size), torch.split(student, size), strict=True))
        if len(pairs) == 1:
            sums = [divergence(teacher, student)]
        else:
            sums = [checkpoint(divergence, *pair, use_reentrant=False) for pair in pairs]
        mean = torch.stack(sums).sum() / len(teacher)
        loss = batch.weighted(mean, "answers") if self.average == "token" else mean
        return LossOutput(loss, {"distillation": loss.detach()})
