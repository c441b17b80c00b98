"""Regression of speech tokens to the embeddings of the transcript, without running the LLM."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ossicle.batch import Batch, LossOutput
from ossicle.losses.regression import even_plans, regression_loss, transport_plans
from ossicle.models.projectors import aligned
from ossicle.models.speech_llm import SpeechLLM
from ossicle.section import section

MIN_VARIANCE = 1e-12


@section
class Regression:
    """Distance of the speech tokens to the token embeddings of the transcript that an alignment pairs them with.

    total = mean over utterances of sum_nm P[n, m] (|x_n - y_m|² / (D v) + cosine · (1 - cos(x_n, y_m))), with the
    embeddings x_n of the transcript and the speech tokens y_m, both minus the mean embedding of the LLM's vocabulary.
    v is the variance of the embeddings' elements, so that a projector which always answers the mean embedding has a
    loss near 1. The LLM does not run. It follows SpeechMapper (arXiv 2601.20417) and SSR (arXiv 2410.00168); not in the
    paper.
    """

    name: Literal["regression"] = "regression"
    alignment: Literal["transport", "even"] = "transport"
    """Pairs of text and speech tokens: ``transport`` is the entropic optimal-transport plan between them, computed in
    every step without a gradient. ``even`` pairs tokens at the same relative position, which suits projectors with one
    vector per token (``cif``, ``ctc``)."""
    entropy: float = Field(default=0.05, ge=1e-3, le=1e3)
    """Weight of the plan's entropy, relative to the mean squared distance in the utterance. Smaller values give sharper
    plans."""
    order: float = Field(default=1.0, ge=0, le=1e6)
    """Weight of the squared difference in relative position in the plan's cost, in units of the mean squared distance.
    0 ignores the order of the tokens."""
    cosine: float = Field(default=0.0, ge=0, le=1e3)
    """Weight of one minus the cosine similarity of each pair. Default: squared distances only."""

    needs_negatives = False
    needs_mixed = False

    def build(self) -> Regression:
        """Return the objective itself, since it has no parameters."""
        return self

    def __call__(self, model: SpeechLLM, batch: Batch) -> LossOutput:
        """Return the loss. Raises `DataError` if the batch has no transcripts."""
        text, speech = model.text(batch), aligned(model.projector, model.speech(batch))
        prompt = len(getattr(model.projector, "prompt", ()))  # learned vectors before the speech stand for no word
        heard, mask = speech.values[:, prompt:].float(), speech.mask[:, prompt:]
        mean = model.llm.embedding_mean.float()
        # The embeddings of an LLM share a large common vector: without it, cosines differ and inner products keep
        # their digits.
        words, heard = text.values.float() - mean, heard - mean
        if self.alignment == "even":
            plan = even_plans(text.mask, mask)
        else:
            plan = transport_plans(words, text.mask, heard, mask, entropy=self.entropy, order=self.order)
        variance = max(model.llm.embedding_rms**2 - float(mean.square().mean()), MIN_VARIANCE)
        losses = regression_loss(plan, words, heard, variance=variance, cosine=self.cosine)
        # Distributed training requires a gradient for every parameter, also for those of the prompt.
        unused = 0.0 * speech.values[:, :prompt].sum()
        return LossOutput(batch.weighted(losses.mean() + unused, "examples"), {"regression": losses.mean().detach()})
