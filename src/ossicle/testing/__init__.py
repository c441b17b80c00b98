"""Create tiny random models and data for tests of Ossicle and of packages built on it, without downloads.

The models have the real architectures with random weights. They load through the ordinary classes, so that
`ossicle train model.llm=FOLDER` accepts them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
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
"""Length of each word in seconds."""


def tiny_manifest(
    folder: Path, count: int = 8, *, tasks: Sequence[str] = (), seed: int = 0, words: bool = False
) -> Path:
    """Write utterances of 0.3 to 0.9 s, one tone per word, and return the path of their manifest.

    Args:
        folder: Folder of the audio files and the manifest; created if necessary.
        count: Number of utterances.
        tasks: Tasks of fine-tuning (``asr``, ``st``, ``qa``), assigned to the lines in turn. By default there are none.
        seed: Seed of the words; it is also part of the file names.
        words: Write the start and end of each word, which mixed speech-text training needs.
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


def _tone(frequency_hz: float) -> npt.NDArray[np.float32]:
    time_s = np.arange(int(WORD_S * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    tone: npt.NDArray[np.float32] = (0.3 * np.sin(2 * np.pi * frequency_hz * time_s)).astype(np.float32)
    return tone
