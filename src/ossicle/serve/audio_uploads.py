"""Read recordings that clients send, within limits: their length is known before their samples fill the memory."""

from __future__ import annotations

import asyncio
import base64
import binascii
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import soundfile
import torch
from torch import Tensor

from ossicle.audio import SAMPLE_RATE_HZ, read_audio
from ossicle.audio_av import forget
from ossicle.errors import AudioError
from ossicle.serve.errors import RequestError, without_places
from ossicle.serve.metrics import Metrics
from ossicle.serve.settings import ServeSettings

DECODED_TOGETHER = 2
"""Recordings that are decoded at a time; the others wait as compressed bytes."""
FULL_RATE_HZ = 48_000
FULL_CHANNELS = 2
"""Recordings may hold as many samples, in all channels, as stereo at this rate."""


class Uploads:
    """Read the recordings of requests to one server."""

    def __init__(self, settings: ServeSettings, metrics: Metrics) -> None:
        self.settings, self.metrics = settings, metrics
        self.reading = 0
        """Recordings that are being read at the moment."""
        self._turns = asyncio.Semaphore(DECODED_TOGETHER)

    async def read(self, content: bytes, param: str) -> Tensor:
        """Return the waveform (S,) at 16 kHz, mono, of the bytes of an audio file.

        Raises `RequestError`, which names the field ``param`` of the request, for bytes that are no recording, a
        damaged one, or one that is longer than the limit.
        """
        if not content:
            raise RequestError("the recording is empty (0 bytes): send an audio file", param=param)
        with self._counted():
            try:
                async with self._turns:
                    waveform = await asyncio.to_thread(self._read, content)
            except AudioError as error:
                raise RequestError(str(error), param=param, code="invalid_audio") from error
        self.metrics.audio_s.inc(len(waveform) / SAMPLE_RATE_HZ)
        return waveform

    async def read_base64(self, text: str, param: str) -> Tensor:
        """Return the waveform (S,) of an audio file in base64; errors as of `read`."""
        with self._counted():
            try:
                content = await asyncio.to_thread(base64.b64decode, text, validate=True)
            except (binascii.Error, ValueError) as error:
                raise RequestError("the data are not base64: encode the bytes of an audio file", param=param) from error
            return await self.read(content, param)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self.reading += 1
        try:
            yield
        finally:
            self.reading -= 1

    def _read(self, content: bytes) -> Tensor:
        most_s = self.settings.max_audio_s
        with tempfile.NamedTemporaryFile(suffix=".audio") as file:  # a file passes all checks of `read_audio`
            file.write(content)
            file.flush()
            try:
                check_samples(Path(file.name), most_s)
                return torch.from_numpy(read_audio(file.name, most_s=most_s))
            except AudioError as error:
                raise AudioError(without_places(str(error).replace(file.name, "the recording"))) from error
            except (MemoryError, OverflowError, ValueError, OSError, RuntimeError) as error:
                raise AudioError("the recording is damaged, so that it cannot be decoded") from error
            finally:
                forget()


def check_samples(path: Path, most_s: float) -> None:
    """Raise `AudioError` if a file holds more than ``most_s`` seconds, or too many samples in all channels.

    libsndfile tells it from the header, against which the size of the file is checked later. Other formats are decoded
    once up to the limit, because their headers can say anything.
    """
    try:
        info: Any = soundfile.info(path)
    except (soundfile.LibsndfileError, RuntimeError, OSError, ValueError):
        _check_by_decoding(path, most_s)
        return
    if info.frames < 2**40:  # libsndfile's mark of an unknown length, which is refused later
        _refuse(info.frames, info.samplerate, info.channels, most_s)


def _check_by_decoding(path: Path, most_s: float) -> None:
    try:
        import av
    except ImportError:
        return  # `read_audio` does not read such files then, and says how it would
    try:
        with av.open(str(path), metadata_errors="ignore") as container:
            frames = 0
            for frame in container.decode(audio=0):
                frames += frame.samples
                _refuse(frames, frame.sample_rate, frame.layout.nb_channels, most_s)
    except (av.FFmpegError, ValueError, IndexError):
        return  # `read_audio` finds the same and says what is wrong


def _refuse(frames: int, rate_hz: int, channels: int, most_s: float) -> None:
    if rate_hz > 0 and frames > most_s * rate_hz:
        raise AudioError(f"the recording lasts more than {most_s:g} s, the limit of this server: send it in parts")
    if frames * channels > most_s * FULL_RATE_HZ * FULL_CHANNELS:
        raise AudioError(
            f"the recording has {channels} channels at {rate_hz} Hz, more samples than this server decodes: send mono "
            "at 16 kHz"
        )
