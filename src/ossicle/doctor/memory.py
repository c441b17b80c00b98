"""Estimate the memory of the largest batch of a run from two measured steps: on the first batch, and on a half of it.

The peak of a step grows linearly with the positions in the LLM, and the encoder's own peak with the seconds of padded
audio. The two do not add up: the encoder has finished before the LLM runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ossicle.batch import Batch
from ossicle.doctor.batch import Loaded
from ossicle.doctor.saved import peak_b
from ossicle.models.projectors import aligned_share
from ossicle.models.speech_llm import SpeechLLM
from ossicle.objectives import names_of
from ossicle.train.recipe import Config
from ossicle.train.token_counts import token_counts

SPEECH_ONLY = {"contrastive", "ctc", "regression"}
"""Objectives whose graph has the speech alone: they run texts without one, or none."""


@dataclass(frozen=True)
class Largest:
    """The largest batch of the run.

    Attributes:
        audio_s: Seconds of its audio.
        positions: Positions in the LLM in the graphs of all terms of the objective: speech, and chat turns in those
            that read them.
        step_b: Estimated bytes at the peak of its forward and backward pass: activations and the gradient.
        encoder_b: Estimated bytes of the encoder at its peak, which are released again; 0 if the frames are cached.
    """

    audio_s: float
    positions: float
    step_b: float
    encoder_b: float


def estimate(config: Config, model: SpeechLLM, loaded: Loaded) -> Largest:
    """Measure two steps without an update, and return the estimate for the largest batch of the run.

    The gradients of the model are deleted.
    """
    sampler, samples = loaded.data.sampler, loaded.data.dataset.samples
    durations_s = np.asarray(sampler.durations_s)
    terms = names_of(config.objective)
    chats = sum(name not in SPEECH_ONLY for name in terms)
    speech = durations_s * model.token_rate_hz * aligned_share(model.projector)
    positions: npt.NDArray[Any] = (len(terms) - chats) * speech
    if chats:
        counts = token_counts(samples, sampler.durations_s, model, loaded.data.collator.prompter)
        positions = positions + chats * counts
    sampler.set_epoch(0)
    first = next(iter(sampler))
    sampler.set_epoch(sampler.curriculum_epochs)
    batches = list(sampler)
    sizes = [float(positions[batch].sum()) for batch in batches]
    largest = int(np.argmax(sizes))
    encoder_b = 0.0
    if not config.data.cache_frames:
        padded_s = [len(batch) * float(durations_s[batch].max()) for batch in (first, *batches)]
        encoder_b = _encoder_b(model, loaded) * max(padded_s) / padded_s[0]
    step_b = _line(model, loaded, first, positions)(sizes[largest])
    return Largest(float(durations_s[batches[largest]].sum()), sizes[largest], step_b, encoder_b)


def _line(model: SpeechLLM, loaded: Loaded, first: list[int], positions: npt.NDArray[Any]) -> Callable[[float], float]:
    """Return the bytes at the peak of a step as a function of its positions.

    The line goes through the batch ``first`` and a half of it. Without a usable half it goes through zero.
    """
    whole, whole_b = float(positions[first].sum()), _step_b(model, loaded, loaded.batch)
    half = first[: len(first) // 2]
    if len(half) >= loaded.data.sampler.min_batch_size:
        dataset = loaded.data.dataset
        batch = loaded.data.collator([dataset[index] for index in half]).to(loaded.accelerator.device)
        if len(batch) == len(half) and len(loaded.batch) == len(first):  # all of them could be read
            rest = whole - float(positions[half].sum())
            slope = max(0, whole_b - _step_b(model, loaded, batch)) / rest
            return lambda size: whole_b + slope * (size - whole)
    return lambda size: whole_b * size / whole


def _step_b(model: SpeechLLM, loaded: Loaded, batch: Batch) -> int:
    """Return the bytes at the peak of the forward and backward pass of ``batch``."""
    model.zero_grad()

    def step() -> None:
        with loaded.accelerator.autocast():
            total = loaded.objective(model, batch).total
        torch.autograd.backward(total)

    found = peak_b(step, loaded.accelerator.device)
    model.zero_grad()
    return found


def _encoder_b(model: SpeechLLM, loaded: Loaded) -> int:
    """Return the bytes of the encoder at its peak, in the first batch."""

    @torch.no_grad()
    def encode() -> None:
        with loaded.accelerator.autocast():
            model.frames(loaded.batch)

    return peak_b(encode, loaded.accelerator.device)
