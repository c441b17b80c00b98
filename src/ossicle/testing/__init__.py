"""Tiny random models and data, for tests of Ossicle and of what is built on it. Nothing is downloaded.

The models have the real architectures and load through the ordinary classes, so `ossicle train model.llm=FOLDER` works
on them; they know nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

from ossicle.audio import SAMPLE_RATE_HZ
from ossicle.batch import Sample
from ossicle.data.manifest import write_manifest
from ossicle.testing.encoders import ENCODERS, EncoderFamily, tiny_encoder
from ossicle.testing.llms import LLMS, LLMFamily, chat_of, tiny_llm, tiny_tokenizer

__all__ = [
    "ENCODERS",
    "LLMS",
    "EncoderFamily",
    "LLMFamily",
    "chat_of",
    "tiny_encoder",
    "tiny_llm",
    "tiny_manifest",
    "tiny_tokenizer",
]
WORDS = [
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "red",
    "green",
    "blue",
    "dog",
    "cat",
    "bird",
    "sees",
    "takes",
    "wants",
]

WORD_S = 0.15


def tiny_manifest(
    folder: Path, count: int = 8, *, tasks: Sequence[str] = (), seed: int = 0, words: bool = False
) -> Path:
    """Write ``count`` utterances of 0.3 to 1.2 s, one tone per word, and their manifest.

    With ``tasks`` ("asr", "st", "qa") the lines carry stage-2 fields, the tasks in turn; with ``words`` they say when
    each word is spoken, as mixed speech-text training needs it.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    samples = []
    for i in range(count):
        spoken = rng.choice(len(WORDS), size=rng.integers(2, 7))
        waveform = np.concatenate([_tone(200.0 + 100 * int(word)) for word in spoken])
        path = folder / f"{seed}-{i}.wav"
        soundfile.write(path, waveform, SAMPLE_RATE_HZ)
        text = " ".join(WORDS[word] for word in spoken)
        times = [[word, i * WORD_S, (i + 1) * WORD_S] for i, word in enumerate(text.split())]
        task = tasks[i % len(tasks)] if tasks else None
        instruction, answers, target = _task(task, text)
        samples.append(
            Sample(
                id=f"{seed}-{i}",
                audio=path,
                text=text,
                language="en",
                speaker=f"speaker{i % 2}",
                duration_s=len(waveform) / SAMPLE_RATE_HZ,
                task=task,
                instruction=instruction,
                answers=answers,
                target_language=target,
                extra={"words": times} if words else {},
            )
        )
    manifest = folder / f"manifest-{seed}.jsonl"
    write_manifest(manifest, samples)
    return manifest


def _task(task: str | None, text: str) -> tuple[str | None, tuple[str, ...], str | None]:
    match task:
        case None:
            return None, (), None
        case "asr":
            return "repeat", (text,), None
        case "st":
            return "translate to german", (text.upper(),), "de"
        case _:
            return "what is the first word", (text.split()[0],), None


def _tone(frequency_hz: float) -> np.ndarray:
    time_s = np.arange(int(WORD_S * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    return (0.3 * np.sin(2 * np.pi * frequency_hz * time_s)).astype(np.float32)
