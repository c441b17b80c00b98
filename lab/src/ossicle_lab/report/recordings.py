"""Collect recordings with the answers of each run. Audio becomes a data URI, so that the page needs no other file."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import soundfile

from ossicle.audio import SAMPLE_RATE_HZ, audio_duration_s, read_audio
from ossicle.errors import AudioError
from ossicle.evaluate.hypotheses import Hypothesis, read_hypotheses
from ossicle.prompts import task_key

LONGEST_S = 30.0
"""Longest audio in the page; longer recordings are cut."""
COMPRESSION = 0.7
"""Compression level of libsndfile, 0 to 1: about 4 kB for a second of speech."""


@dataclass(frozen=True)
class Answer:
    """The answer of one run."""

    run: str
    text: str
    right: bool


@dataclass(frozen=True)
class Asked:
    """One instruction about a recording, and the answers to it."""

    task: str
    instruction: str
    reference: str
    answers: list[Answer]


@dataclass(frozen=True)
class Recording:
    """A recording and all instructions about it."""

    audio: str | None
    """Data URI, or None if the page does not contain the audio."""
    missing: str
    """Why the page does not contain the audio, or an empty text."""
    asked: list[Asked]


def recordings(files: Mapping[str, Path], count: int, tasks: Sequence[str], folders: Sequence[Path]) -> list[Recording]:
    """Return ``count`` recordings, evenly spread over those that all hypotheses files contain.

    Args:
        files: the hypotheses file of each run; missing files are left out.
        count: number of recordings.
        tasks: the order of the instructions.
        folders: the folders whose audio the page may contain. A file of hypotheses can name any file of the computer,
            and the page may be published.
    """
    runs = {name: _by_audio(path) for name, path in files.items() if path.is_file()}
    if not runs or count < 1:
        return []
    common = sorted(set.intersection(*(set(run) for run in runs.values())))
    chosen = common[:: max(1, len(common) // count)][:count]
    return [Recording(*_audio(Path(audio), folders), _asked(audio, runs, tasks)) for audio in chosen]


def _audio(path: Path, folders: Sequence[Path]) -> tuple[str | None, str]:
    """Return the data URI of a recording, or None and the reason."""
    try:
        real = path.resolve()  # a link below a folder may lead out of it
        if not any(real.is_relative_to(folder.resolve()) for folder in folders):
            return None, "The audio is outside the folder of the report; name its folder with --audio-folder."
        return data_uri(real), ""
    except (AudioError, OSError, RuntimeError, ValueError):  # also a loop of links, or a null character in the path
        return None, "The audio file was not found or cannot be read."


def data_uri(path: Path) -> str:
    """Return the first 30 s of a recording as MP3 in a data URI. Raises `AudioError` if the file cannot be read."""
    waveform = read_audio(path, end_s=None if audio_duration_s(path) <= LONGEST_S else LONGEST_S)
    buffer = io.BytesIO()
    soundfile.write(
        buffer,
        waveform,
        SAMPLE_RATE_HZ,
        format="MP3",
        subtype="MPEG_LAYER_III",
        compression_level=COMPRESSION,
    )
    return "data:audio/mpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _by_audio(path: Path) -> dict[str, list[Hypothesis]]:
    found: dict[str, list[Hypothesis]] = {}
    for line in read_hypotheses(path):
        if line.audio is not None:
            found.setdefault(line.audio, []).append(line)
    return found


def _asked(audio: str, runs: Mapping[str, dict[str, list[Hypothesis]]], tasks: Sequence[str]) -> list[Asked]:
    lines = {name: {line.key: line for line in run[audio]} for name, run in runs.items()}
    first = next(iter(lines.values()))
    ordered = sorted(first.values(), key=lambda line: _rank(line, tasks))
    return [
        Asked(
            task=_task(line),
            instruction=line.instruction or "",
            reference=line.references[0] if line.references else "",
            answers=[
                Answer(name, said.hypothesis, said.hypothesis.strip() in said.references)
                for name, run in lines.items()
                if (said := run.get(line.key)) is not None
            ],
        )
        for line in ordered
    ]


def _task(line: Hypothesis) -> str:
    return task_key(line.task or "asr", line.target_language)


def _rank(line: Hypothesis, tasks: Sequence[str]) -> int:
    task = _task(line)
    return tasks.index(task) if task in tasks else len(tasks)
