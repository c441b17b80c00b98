"""On-policy distillation: the LLM that reads the transcript scores what the model answers to the speech.

Shape legend: B chat turns, A tokens of an answer, K tokens of all answers, D width of the LLM.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ossicle.batch import Batch, Chat, LossOutput, Padded, pad_ids
from ossicle.losses.distillation import kl_divergence
from ossicle.models.speech_llm import SpeechLLM
from ossicle.objectives.distillation import mean_divergence
from ossicle.objectives.next_token import answer_inputs, chat_of, states_before_labels
from ossicle.section import section

LARGEST_SEED = 2**31


@section
class OnPolicy:
    """Reverse KL divergence between the LLM given speech and the LLM given the transcript, on the model's own answers.

    The model answers each chat turn from the speech, without a graph. At each token y_t of that answer, the loss is
    KL(q || p) = sum_v q(v) (log q(v) - log p(v)), where q = P(v | speech, instruction, y_<t) is the student with a
    graph and p = P(v | transcript, instruction, y_<t) the teacher without. It is averaged over the tokens of the batch.
    Unlike `Distillation`, it trains in the states that the model reaches by itself. Sources: on-policy distillation
    (GKD, arXiv 2306.13649) between text and speech (X-OPD, arXiv 2603.24596); not in the paper.
    """

    name: Literal["on_policy"] = "on_policy"
    temperature: float = Field(default=1.0, ge=0, le=1e3)
    """Temperature of sampling the answers in training; 0 is greedy decoding. Evaluation decodes greedily."""
    max_new_tokens: int = Field(default=48, ge=1, le=10**6)
    """Longest answer in tokens. Longer ones are cut, and what they have is scored."""
    share: float = Field(default=1.0, ge=0, le=1)
    """Share of the batches with the model's own answers. The others have those of the data, or the transcripts, which
    helps while the model's answers are still random."""

    needs_negatives = False
    needs_mixed = False

    def build(self) -> OnPolicy:
        """Return the objective itself, since it has no parameters."""
        return self

    def __call__(self, model: SpeechLLM, batch: Batch) -> LossOutput:
        """Return the loss in nats per token, and the mean length of the answers in tokens."""
        chat, text, speech = chat_of(batch), model.text(batch), model.speech(batch)
        if not model.training or float(torch.rand(())) < self.share:
            chat = replace(chat, answer=self.answers(model, chat, speech))
        with torch.no_grad():
            teacher = states_before_labels(model, *answer_inputs(model, chat, text))  # (K, D)
        student = states_before_labels(model, *answer_inputs(model, chat, speech))  # (K, D)
        mean = mean_divergence(model, teacher, student, _reverse)
        lengths = chat.answer.mask.sum(1).float().mean()
        parts = {"on_policy": mean.detach(), "on_policy/tokens": lengths}
        return LossOutput(batch.weighted(mean, "examples"), parts)

    @torch.no_grad()
    def answers(self, model: SpeechLLM, chat: Chat, speech: Padded) -> Padded:
        """Return the token ids (B, A) of the model's answers about ``speech`` (B, M, D), each with its end of turn."""
        from ossicle.models.running import RunningBatch  # generation is not on the path from data to loss

        prompt = model.prompt(chat, speech)
        running = RunningBatch(model.llm, most_rows=len(prompt.mask))
        settings = {"max_new_tokens": self.max_new_tokens, "temperature": self.temperature if model.training else 0}
        rows = []
        for values, mask in zip(torch.split(prompt.values, 1), torch.split(prompt.mask, 1), strict=True):
            seed = int(torch.randint(LARGEST_SEED, ()))  # of the run's seed: a resumed run draws the same
            rows += running.join(Padded(values, mask), seed=seed, **settings)
        while len(running):
            running.step()
        return pad_ids([row.ids for row in rows]).to(prompt.mask.device)


def _reverse(teacher: Tensor, student: Tensor) -> Tensor:
    """Return KL(student || teacher) of logits (k, vocabulary): (k,)."""
    return kl_divergence(student, teacher)
