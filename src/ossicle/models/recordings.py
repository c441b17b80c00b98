"""Turn what people call a recording (a path, bytes, a file, an array with its rate) into a mono waveform at 16 kHz."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soxr
import torch
from torch import Tensor

from ossicle.audio import SAMPLE_RATE_HZ, read_audio
from ossicle.audio_decoding import mix_down
from ossicle.batch import Batch, Sample, pad
from ossicle.errors import AudioError, ConfigError
from ossicle.models.limits import warn_of_limits

HIGHEST_RATE_HZ = 768_000
LOUDEST = 1e3
"""Largest absolute sample of an array of floats. Full scale is 1, and samples far beyond it are damaged or of another
unit."""
KINDS = (
    "give a path, a waveform (S,) as an array or a tensor, (waveform, sampling_rate), "
    "{'array': ..., 'sampling_rate': ...}, the bytes of an audio file, or an open file"
)


def batch_of(
    model: Any, audio: Any, instruction: str | Sequence[str], sampling_rate: int | None = None
) -> Batch | None:
    """Return the batch for `SpeechLLM.generate`, with its arguments and errors; None if there are no recordings."""
    recordings = audio if is_list(audio) else [audio]
    given: list[Any] = list(instruction) if isinstance(instruction, list | tuple) else [instruction]
    instructions = given if isinstance(instruction, list | tuple) else given * len(recordings)
    if wrong := [asked for asked in instructions if not isinstance(asked, str) or not is_text(asked)]:
        raise ConfigError(f"the instruction {wrong[0]!r} is no text: give a string of Unicode characters")
    if len(instructions) != len(recordings):
        raise ConfigError(
            f"there are {len(recordings)} recordings and {len(instructions)} instructions: give one for each, or a "
            "single one for all"
        )
    if not recordings:
        return None
    names = [str(r) if isinstance(r, str | os.PathLike) else f"recording {i}" for i, r in enumerate(recordings, 1)]
    rows = [read_recording(r, sampling_rate, name) for r, name in zip(recordings, names, strict=True)]
    warn_of_limits(model, rows, names)
    samples = [
        Sample(id=str(i), audio=Path(), instruction=asked, source=name)
        for i, (asked, name) in enumerate(zip(instructions, names, strict=True))
    ]
    return Batch(samples=samples, waveforms=pad(rows), chat=model.prompter().chat(samples, 0))


def is_list(audio: Any) -> bool:
    """Return True if ``audio`` is several recordings rather than one, such as (waveform, sampling rate)."""
    return isinstance(audio, list | tuple) and not _is_with_rate(audio) and not all(map(_is_number, audio or [None]))


def read_recording(audio: Any, sampling_rate: int | None, name: str) -> Tensor:
    """Return the waveform (S,) of ``audio`` at 16 kHz, mono, in float32.

    Args:
        audio: A path, the bytes of an audio file, an open binary file, a waveform (S,), (1, S), (2, S) or (S, 2) as an
            array, a tensor or a list, or a waveform with its rate: a pair, or a dictionary as of the library datasets.
        sampling_rate: Rate of a waveform without a rate of its own, in Hz. Default: 16,000.
        name: The recording in messages, such as ``recording 1``.

    Raises `AudioError` for audio that cannot be read, is empty or has samples that are not finite, and `ConfigError`
    for a rate that is not positive.
    """
    if isinstance(audio, dict):
        audio, sampling_rate = _of_dict(audio, sampling_rate, name)
    elif isinstance(audio, list | tuple) and _is_with_rate(audio):
        first, second = audio
        audio, sampling_rate = (second, int(first)) if _is_number(first) else (first, int(second))
    if isinstance(audio, str | os.PathLike):
        return torch.from_numpy(read_audio(Path(audio).expanduser()))
    if isinstance(audio, bytes | bytearray | memoryview) or hasattr(audio, "read"):
        return _of_file(audio, name)
    values = _of_array(audio, name)
    rate = SAMPLE_RATE_HZ if sampling_rate is None else sampling_rate
    if not _is_number(rate) or not 0 < rate <= HIGHEST_RATE_HZ:
        raise ConfigError(f"{name}: the sampling rate is {rate}: give it in Hz, such as sampling_rate=48000")
    if not values.size:
        raise AudioError(f"{name}: holds no samples; check how it was recorded")
    if not np.isfinite(values).all():
        raise AudioError(f"{name}: holds samples that are not finite (NaN or infinity); check how it was computed")
    if (loudest := float(np.abs(values).max())) > LOUDEST:
        raise AudioError(f"{name}: holds a sample of {loudest:g}, but full scale is 1: scale the waveform to -1..1")
    if rate != SAMPLE_RATE_HZ:
        values = soxr.resample(values, rate, SAMPLE_RATE_HZ, quality="HQ")
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))


def _of_dict(audio: dict[str, Any], rate: int | None, name: str) -> tuple[Any, int | None]:
    """Return the recording and the rate in a dictionary of the library datasets."""
    for key in ("array", "raw", "waveform", "bytes", "path"):
        if audio.get(key) is not None:
            return audio[key], audio.get("sampling_rate", rate)
    raise AudioError(f"{name}: the dictionary has the keys {sorted(map(str, audio))}: {KINDS}")


def _of_file(audio: Any, name: str) -> Tensor:
    """Return the waveform (S,) at 16 kHz of the bytes of an audio file, or of an open one."""
    content = audio.read() if hasattr(audio, "read") else audio
    if isinstance(content, str):
        raise AudioError(f"{name}: the file is open for text: open it with mode 'rb'")
    if not len(content):
        raise AudioError(f"{name}: the file is empty, or was read to its end before")
    with tempfile.NamedTemporaryFile(suffix=".audio") as file:  # as a file it passes all checks of `read_audio`
        file.write(content)
        file.flush()
        try:
            return torch.from_numpy(read_audio(file.name))
        except AudioError as error:
            raise AudioError(str(error).replace(file.name, name)) from error


def _of_array(audio: Any, name: str) -> npt.NDArray[Any]:
    """Return a waveform as floats (S,), the mean of its channels; integers are scaled by their range."""
    try:
        values = np.asarray(audio.detach().float().cpu() if _is_float_tensor(audio) else audio)
    except (TypeError, ValueError, RuntimeError) as error:
        raise AudioError(f"{name}: a {type(audio).__name__} is not audio: {KINDS}") from error
    if not (np.issubdtype(values.dtype, np.floating) or np.issubdtype(values.dtype, np.integer)) or values.ndim == 0:
        raise AudioError(f"{name}: a {type(audio).__name__} is not audio: {KINDS}")
    if np.issubdtype(values.dtype, np.integer) and values.size:
        if values.dtype.itemsize == 8:
            raise AudioError(f"{name}: holds integers of 64 bits, whose full scale is not known: convert them to int16")
        limits = np.iinfo(values.dtype)
        middle = (int(limits.max) + 1) // 2 if limits.min == 0 else 0  # unsigned samples are centred there
        values = (values.astype(np.float64) - middle) / (middle or int(limits.max) + 1)
    if values.ndim == 2 and min(values.shape) <= 2:
        values = values.astype(np.float64)
        values = mix_down(values.T if values.shape[0] <= 2 else values, name)
    if values.dtype not in (np.float32, np.float64):
        values = values.astype(np.float32)  # the resampler takes no others
    if values.ndim != 1:
        raise AudioError(
            f"{name}: has the shape {tuple(values.shape)}: give a waveform (S,) or (2, S), or a list of them for "
            "several recordings"
        )
    return values


def is_text(value: str) -> bool:
    """Return False for a string with half a character (a lone surrogate), which no tokenizer takes."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


def _is_float_tensor(audio: Any) -> bool:
    return isinstance(audio, Tensor) and audio.is_floating_point()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _is_with_rate(audio: Any) -> bool:
    """Return True for a pair of a waveform or file and a number, in any order."""
    return isinstance(audio, tuple) and len(audio) == 2 and _is_number(audio[0]) != _is_number(audio[1])
