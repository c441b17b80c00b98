"""Compare recordings with what a model can read, and with what it was trained for."""

from __future__ import annotations

import math
import warnings
from typing import Any

from torch import Tensor

from ossicle.audio import SAMPLE_RATE_HZ
from ossicle.batch import Batch, Padded
from ossicle.errors import DataError

ANSWERING = {"next_token", "distillation"}
"""Objectives that teach a model to answer."""


def longest_audio_s(model: Any, other_tokens: int = 0) -> float:
    """Return the seconds of speech that fit into the LLM's context beside ``other_tokens`` tokens of text."""
    if model.llm.context is None:
        return math.inf
    return float(max(0.0, (model.llm.context - other_tokens) / model.token_rate_hz))


def explain_too_long(model: Any, batch: Batch, speech: Padded) -> DataError:
    """Return the error that names the recording with the most speech tokens of ``speech`` (B, M, D)."""
    counts = speech.mask.sum(1)
    worst = int(counts.argmax())
    tokens = int(counts[worst])
    return DataError(
        f"{batch.samples[worst].source}: {tokens / model.token_rate_hz:.0f} s of audio are {tokens} speech tokens, but "
        f"{model.llm.name} reads {model.llm.context} positions, which are {longest_audio_s(model):.0f} s: cut the "
        "recording, or set data.max_duration_s to leave it out"
    )


def warn_of_limits(model: Any, waveforms: list[Tensor], names: list[str]) -> None:
    """Warn if ``model`` was not trained to answer, or not on recordings as long as these ``waveforms``, each (S,)."""
    if model.objectives and not ANSWERING.intersection(model.objectives):
        warnings.warn(
            f"this model was pretrained with {', '.join(model.objectives)} and has not learned to answer: fine-tune it "
            "first (train.init_from)",
            stacklevel=3,
        )
    if model.longest_s is None:
        return
    for waveform, name in zip(waveforms, names, strict=True):
        length_s = len(waveform) / SAMPLE_RATE_HZ
        if length_s > model.longest_s * 1.5:
            warnings.warn(
                f"{name} lasts {length_s:.1f} s, and the longest recording of the training {model.longest_s:.1f} s: "
                "cut it into shorter parts, for answers about longer ones are unreliable",
                stacklevel=3,
            )
