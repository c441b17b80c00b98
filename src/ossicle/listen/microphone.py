"""Listen to a microphone: cut what it records into utterances at pauses, and transcribe each."""

from __future__ import annotations

import queue
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from ossicle.audio import SAMPLE_RATE_HZ
from ossicle.errors import MissingPackageError, OssicleError
from ossicle.listen.long import transcript_instruction, window_s
from ossicle.listen.pauses import DetectorName, find_detector

FloatArray = npt.NDArray[Any]
BLOCK_S = 0.25
"""Seconds of sound that are looked at together."""
PAUSE_S = 0.7
"""Pause in seconds that ends an utterance."""
LEAD_S = 0.5
"""Seconds before the first detected sound that belong to the utterance."""


class UtteranceFinder:
    """Cut a stream of sound into utterances.

    Args:
        most_s: Longest utterance in seconds; speech without a pause is cut there.
        pause_s: Pause in seconds that ends an utterance.
        detector: Detector of speech, see `ossicle.listen.pauses`.
    """

    def __init__(self, most_s: float, *, pause_s: float = PAUSE_S, detector: DetectorName = "auto") -> None:
        self.most, self.pause = int(most_s * SAMPLE_RATE_HZ), int(pause_s * SAMPLE_RATE_HZ)
        self._detect = find_detector(detector)
        self._sound: FloatArray = np.empty(0, np.float32)

    def push(self, block: FloatArray) -> FloatArray | None:
        """Add a block (S,) at 16 kHz and return an utterance if one has ended, else None."""
        self._sound = np.concatenate([self._sound, np.asarray(block, np.float32)])
        speech = self._detect(self._sound)
        if not speech:
            self._sound = self._sound[-int(LEAD_S * SAMPLE_RATE_HZ) :]
            return None
        if len(self._sound) - speech[-1][1] >= self.pause or len(self._sound) >= self.most:
            return self.flush()
        return None

    def flush(self) -> FloatArray | None:
        """Return what is left, or None if there is no speech in it."""
        sound, self._sound = self._sound, np.empty(0, np.float32)
        return sound if self._detect(sound) else None


def transcribe_blocks(model: Any, blocks: Iterable[FloatArray], **options: Any) -> Iterator[str]:
    """Yield the transcript of each utterance in a stream of blocks (S,) at 16 kHz, as soon as it has ended.

    ``options`` are those of `UtteranceFinder`.
    """
    finder = UtteranceFinder(window_s(model), **options)
    asked = transcript_instruction(model)
    for block in chain(blocks, [None]):
        utterance = finder.flush() if block is None else finder.push(block)
        if utterance is not None and (text := model.generate(utterance, asked)[0]):
            yield text


def microphone_blocks(device: int | str | None = None) -> Iterator[FloatArray]:
    """Yield blocks (S,) at 16 kHz from a microphone, until the generator is closed.

    Args:
        device: Number or part of the name of the microphone; None for that of the system.

    Raises `MissingPackageError` if sounddevice is not installed, and `OssicleError` if there is no such microphone.
    """
    try:
        import sounddevice
    except (ImportError, OSError) as error:  # OSError: the library PortAudio is missing
        raise MissingPackageError(
            "listening to a microphone needs sounddevice and PortAudio: run `pip install 'ossicle[listen]'`, "
            f"and install PortAudio if your system lacks it, such as with `apt install libportaudio2` ({error})"
        ) from error
    blocks: queue.Queue[FloatArray] = queue.Queue()

    def keep(sound: FloatArray, *_: Any) -> None:
        blocks.put(sound[:, 0].copy())

    size = int(BLOCK_S * SAMPLE_RATE_HZ)
    try:
        stream = sounddevice.InputStream(
            samplerate=SAMPLE_RATE_HZ, channels=1, dtype="float32", blocksize=size, device=device, callback=keep
        )
    except (sounddevice.PortAudioError, ValueError) as error:
        raise OssicleError(
            f"the microphone {'of the system' if device is None else device} cannot be opened ({error}): see "
            "`python -m sounddevice` for the devices, and choose one with --microphone"
        ) from error
    with stream:
        while True:
            yield blocks.get()
