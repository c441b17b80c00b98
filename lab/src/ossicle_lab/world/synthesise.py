"""From texts to a folder of spoken utterances with its manifest."""

from __future__ import annotations

import multiprocessing
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ossicle.batch import Sample
from ossicle.corpora.speak_file import SpeakJob, Spoken, speak_file
from ossicle.corpora.voices import Voice
from ossicle.data.manifest import read_manifest, write_manifest
from ossicle.errors import VoiceError

_PARALLEL_FROM = 64
"""Fewer utterances than this are spoken sooner than new processes start."""
_SAMPLE_FIELDS = {field.name for field in fields(Sample)} - {"extra", "source"}


def synthesise(
    items: Iterable[Mapping[str, Any]],
    out_dir: str | Path,
    *,
    voices: Sequence[Voice],
    seed: int = 0,
    processes: int | None = None,
    progress: bool | None = None,
) -> Path:
    """Speak every item and write ``out_dir/audio/*.wav`` (16 kHz, 16 bit) and ``out_dir/manifest.jsonl``.

    An item has an ``id`` and a ``text`` (lower-case words) and may carry any other field of `Sample`, or fields of its
    own. Voice, rate, pitch and noise are drawn from the seed, the id and the text, not from the order of the items.
    A file's name changes with what is said, by whom and with which seed, and what an earlier call spoke is not spoken
    again. Every item is one utterance: for several tasks on one utterance, copy its lines of the manifest.

    Args:
        items: the texts.
        out_dir: made where it does not exist.
        voices: the speakers, each drawn equally often.
        seed: of everything that is drawn.
        processes: how many to speak in parallel; ``None``: one per core.
        progress: show a progress bar; ``None``: only on a terminal.

    Returns:
        The path of the manifest, whose lines have also ``language``, ``speaker``, ``duration_s``, ``gender``,
        ``rate_wpm`` and ``words`` (each word with its start and end in seconds).
    """
    items, out_dir = list(items), Path(out_dir)
    if not voices:
        raise VoiceError("no voices given: pass train_voices() or test_voices()")
    audio_dir = out_dir / "audio"
    audio_dir.mkdir(parents=True, exist_ok=True)
    manifest = out_dir / "manifest.jsonl"
    jobs = [_job(item, audio_dir, voices, seed) for item in items]
    spoken = _spoken_before(manifest)
    missing = [job for job in jobs if not (job.path.name in spoken and job.path.exists())]
    new = _with_progress(_speak_all(missing, processes or os.cpu_count() or 1), len(missing), progress)
    spoken |= {result.path.name: result for result in new}
    write_manifest(manifest, [_sample(item, job, spoken[job.path.name]) for item, job in zip(items, jobs, strict=True)])
    return manifest


def _job(item: Mapping[str, Any], audio_dir: Path, voices: Sequence[Voice], seed: int) -> SpeakJob:
    voice = voices[zlib.crc32(f"{seed} {item['id']}".encode()) % len(voices)]
    digest = zlib.crc32(f"{seed}\n{voice.name}\n{item['text']}".encode())
    return SpeakJob(path=audio_dir / f"{item['id']}-{digest:08x}.wav", text=item["text"], voice=voice, seed=seed)


def _spoken_before(manifest: Path) -> dict[str, Spoken]:
    """What an earlier, complete call wrote, by file name."""
    if not manifest.exists():
        return {}
    return {
        sample.audio.name: Spoken(
            path=sample.audio,
            duration_s=sample.duration_s or 0.0,
            rate_wpm=sample.extra["rate_wpm"],
            words=[tuple(word) for word in sample.extra["words"]],
        )
        for sample in read_manifest(manifest)
    }


def _speak_all(jobs: list[SpeakJob], processes: int) -> Iterator[Spoken]:
    if processes == 1 or len(jobs) < _PARALLEL_FROM:
        yield from map(speak_file, jobs)
        return
    # Processes, as espeak-ng is one engine per process; spawned, as a fork of a process with threads can hang.
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from pool.imap(speak_file, jobs, chunksize=16)


def _with_progress(results: Iterator[Spoken], total: int, show: bool | None) -> list[Spoken]:
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("speaking"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[hours]:.2f} h of speech, {task.fields[rate]:.0f} x real time"),
        TimeRemainingColumn(),
        console=console,
        disable=not (console.is_terminal if show is None else show),
    )
    done: list[Spoken] = []
    seconds = 0.0
    with bar:
        task = bar.add_task("speaking", total=total, hours=0.0, rate=0.0)
        for result in results:
            done.append(result)
            seconds += result.duration_s
            elapsed = bar.tasks[task].elapsed or 1e-9
            bar.update(task, advance=1, hours=seconds / 3600, rate=seconds / elapsed)
    return done


def _sample(item: Mapping[str, Any], job: SpeakJob, spoken: Spoken) -> Sample:
    known = {name: value for name, value in item.items() if name in _SAMPLE_FIELDS}
    own = {name: value for name, value in item.items() if name not in _SAMPLE_FIELDS}
    known |= {
        "audio": job.path,
        "language": "en",
        "speaker": job.voice.name,
        "duration_s": round(spoken.duration_s, 4),
    }
    own |= {
        "gender": job.voice.gender,
        "rate_wpm": spoken.rate_wpm,
        "words": [[word, round(start_s, 3), round(end_s, 3)] for word, start_s, end_s in spoken.words],
    }
    return Sample(**known, extra=own)
