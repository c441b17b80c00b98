"""Losses on tokens: ASR pretraining, fine-tuning on tasks, distillation, and CTC.

Shape legend: B chat turns, L positions, K labels of the whole batch, D width of the LLM.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ossicle.batch import Batch, Chat, LossOutput, Padded
from ossicle.errors import ConfigError, DataError
from ossicle.models.packing import Prefix
from ossicle.models.speech_llm import IGNORE, SpeechLLM
from ossicle.section import section

CHUNK_LOGITS = 2**25
"""Most logits that `Distillation` holds in memory at once, of teacher and of student (128 MB each in float32). A
vocabulary of 128,000 reaches this with 260 tokens. Further logits are computed in chunks, and again in the backward
pass."""


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
            teacher = states_before_labels(model, *answer_inputs(model, chat, model.text(batch)))  # (K, D)
        student = states_before_labels(model, *answer_inputs(model, chat, model.speech(batch)))  # (K, D)

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


@section
class CTC:
    """CTC loss of the transcript, spelled with the LLM's tokens, and of its characters in the middle of the network.

    The LLM does not run. The transcript counts as it is heard: in lower case, without punctuation. Not in the paper;
    see `ossicle.models.ctc` for sources.
    """

    name: Literal["ctc"] = "ctc"
    characters: float = Field(default=1.0, ge=0, le=1e3)
    """Weight of the loss on characters beside that on tokens. Both are in nats per label."""

    needs_negatives = False
    needs_mixed = False

    def build(self) -> CTC:
        """Return the objective itself, since it has no parameters."""
        return self

    def __call__(self, model: SpeechLLM, batch: Batch) -> LossOutput:
        """Return the loss. Raises `ConfigError` for another projector, and `DataError` without transcripts."""
        from ossicle.losses.ctc import ctc_loss  # few runs use it, as the following
        from ossicle.models.ctc import spelled

        if model.config.projector.name != "ctc":
            raise ConfigError("objective 'ctc' needs a projector that spells: set model.projector.name=ctc")
        if missing := [sample.source for sample in batch.samples if not sample.text]:
            raise DataError(f"objective 'ctc' needs transcripts; add 'text' to {', '.join(missing[:3])}")
        spelling = spelled(model.projector, model.frames(batch))
        tokens, characters = model.projector.targets([sample.text or "" for sample in batch.samples])
        lengths = spelling.mask.sum(1)
        slots = spelling.characters.shape[1] // spelling.tokens.shape[1]
        parts = {
            "ctc": ctc_loss(spelling.tokens, lengths, tokens),
            "characters": ctc_loss(spelling.characters, slots * lengths, characters),
        }
        # Distributed training requires a gradient for every parameter, also for those that only the LLM's loss trains.
        unused = sum(0.0 * parameter.sum() for parameter in model.projector.unspelled)
        total = batch.weighted(parts["ctc"] + self.characters * parts["characters"] + unused, "examples")
        return LossOutput(total, {name: part.detach() for name, part in parts.items()})
