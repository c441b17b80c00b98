"""Estimate the positions that each utterance takes in the LLM, for ``data.max_batch_tokens``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ossicle.batch import Sample
from ossicle.models.speech_llm import SpeechLLM
from ossicle.prompts import Prompter, answer_of

TOKENISED = 32
"""Number of samples of each language that are tokenised, evenly spaced in the data."""


def token_counts(
    samples: Sequence[Sample], durations_s: Sequence[float], model: SpeechLLM, prompter: Prompter
) -> npt.NDArray[np.int64]:
    """Return the positions of each sample: its speech, its chat turn and its answer.

    Speech is counted by its duration. The texts are counted by their characters; some are tokenised, to learn how many
    tokens a character of their language has.
    """
    by_language: defaultdict[str | None, list[int]] = defaultdict(list)
    characters = np.zeros((len(samples), 2))  # of the instruction and of the answer
    for index, sample in enumerate(samples):
        by_language[sample.target_language or sample.language].append(index)
        characters[index] = [len(part) for part in _parts(sample, prompter)]
    fixed = len(prompter.before) + len(prompter.turn("", "").after) + len(prompter.end)
    text = np.zeros(len(samples))
    for members in by_language.values():
        chosen = members[:: max(1, len(members) // TOKENISED)]
        tokens = [[len(prompter.content_ids(part)) for part in _parts(samples[i], prompter)] for i in chosen]
        rates = np.sum(tokens, 0) / np.maximum(1, characters[chosen].sum(0))  # tokens per character
        text[members] = fixed + characters[members] @ rates
    speech = np.asarray(durations_s) * model.token_rate_hz
    counts: npt.NDArray[np.int64] = (np.ceil(speech) + np.ceil(text)).astype(np.int64)
    return counts


def _parts(sample: Sample, prompter: Prompter) -> tuple[str, str]:
    """Return the instruction of the first epoch and the answer."""
    return prompter.instruction(sample, 0), answer_of(sample)
