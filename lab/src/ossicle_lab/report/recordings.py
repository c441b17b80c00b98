"""Recordings with what each run made of them: audio as data URIs, so that the page can be sent to someone."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import soundfile

from ossicle.audio import SAMPLE_RATE_HZ, read_audio
from ossicle.errors import AudioError
from ossicle.evaluate.score import Hypothesis, read_hypotheses
from ossicle.prompts import task_key

LONGEST_S = 30.0
"""What a player gets of a long recording."""
SMALL = 0.7
"""libsndfile's compression, 0 to 1: some 4 kB for a second of speech."""


@dataclass(frozen=True)
class Answer:
    """What one run said."""

    run: str
    text: str
    right: bool


@dataclass(frozen=True)
class Asked:
    """One instruction about a recording."""

    task: str
    instruction: str
    reference: str
    answers: list[Answer]


@dataclass(frozen=True)
class Recording:
    """A recording and everything asked about it."""

    audio: str | None
    """Data URI; None where the file is gone."""
    asked: list[Asked]


def recordings(files: Mapping[str, Path], count: int, tasks: Sequence[str]) -> list[Recording]:
    """``count`` recordings, evenly spread over those that every hypotheses file of ``files`` (run -> path) has.

    ``tasks`` orders what was asked. Files that are missing are left out.
    """
    runs = {name: _by_audio(path) for name, path in files.items() if path.is_file()}
    if not runs or count < 1:
        return []
    common = sorted(set.intersection(*(set(run) for run in runs.values())))
    chosen = common[:: max(1, len(common) // count)][:count]
    return [Recording(data_uri(Path(audio)), _asked(audio, runs, tasks)) for audio in chosen]


def data_uri(path: Path) -> str | None:
    """The first 30 s of a recording as MP3 in a data URI; None where it cannot be read any more."""
    try:
        waveform = read_audio(path)
    except AudioError:
        return None
    buffer = io.BytesIO()
    soundfile.write(
        buffer,
        waveform[: round(LONGEST_S * SAMPLE_RATE_HZ)],
        SAMPLE_RATE_HZ,
        format="MP3",
        subtype="MPEG_LAYER_III",
        compression_level=SMALL,
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
