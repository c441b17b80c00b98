"""Speak texts into a folder of audio files with a manifest."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ossicle.batch import Sample
from ossicle.corpora.voices import Voice
from ossicle.data.manifest import read_manifest, write_manifest
from ossicle.errors import VoiceError
from ossicle.progress import Progress
from ossicle_lab.jobs import cores, process_pool
from ossicle_lab.world.speak_file import SpeakJob, Spoken, speak_file

_PARALLEL_FROM = 64
"""Fewer utterances than this take less time than the start of new processes."""
_SAMPLE_FIELDS = {field.name for field in fields(Sample)} - {"extra", "source"}


def synthesise(
    items: Iterable[Mapping[str, Any]],
    out_dir: str | Path,
    *,
    voices: Sequence[Voice],
    seed: int = 0,
    processes: int | None = None,
    progress: bool = True,
) -> Path:
    """Speak every item and write ``out_dir/audio/*.wav`` (16 kHz, 16 bit) and ``out_dir/manifest.jsonl``.

    Voice, rate, pitch and noise depend on the seed, the id and the text, not on the order of the items. The name of an
    audio file depends on its text, voice and seed, and files of an earlier call are used again. Each item is one
    utterance: for several tasks on one utterance, copy its line of the manifest.

    Args:
        items: each has an ``id``, a ``text`` of lower-case words, and optionally other fields of `Sample` or its own.
        out_dir: output folder, created if needed.
        voices: the speakers, drawn with equal probability.
        seed: seed of all random choices.
        processes: number of processes; None for one per core.
        progress: show the progress.

    Returns:
        The path of the manifest. Its lines also have ``language``, ``speaker``, ``duration_s``, ``gender``,
        ``rate_wpm`` and ``words`` (each word with its start and end in seconds).

    Raises:
        VoiceError: ``voices`` is empty, or espeak-ng is not installed.
    """
    items, out_dir = list(items), Path(out_dir)
    if not voices:
        raise VoiceError("no voices given: pass train_voices() or held_out_voices()")
    audio_dir = out_dir / "audio"
    audio_dir.mkdir(parents=True, exist_ok=True)
    manifest = out_dir / "manifest.jsonl"
    jobs = [_job(item, audio_dir, voices, seed) for item in items]
    spoken = _spoken_before(manifest)
    missing = [job for job in jobs if not (job.path.name in spoken and job.path.exists())]
    new = _with_progress(_speak_all(missing, processes or cores()), len(missing), enabled=progress)
    spoken |= {result.path.name: result for result in new}
    write_manifest(manifest, [_sample(item, job, spoken[job.path.name]) for item, job in zip(items, jobs, strict=True)])
    return manifest


def _job(item: Mapping[str, Any], audio_dir: Path, voices: Sequence[Voice], seed: int) -> SpeakJob:
    voice = voices[zlib.crc32(f"{seed} {item['id']}".encode()) % len(voices)]
    digest = zlib.crc32(f"{seed}\n{voice.name}\n{item['text']}".encode())
    return SpeakJob(path=audio_dir / f"{item['id']}-{digest:08x}.wav", text=item["text"], voice=voice, seed=seed)


def _spoken_before(manifest: Path) -> dict[str, Spoken]:
    """Return what an earlier, complete call wrote, by file name."""
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
    with process_pool(processes) as pool:  # espeak-ng has one engine per process, so threads would not help
        yield from pool.map(speak_file, jobs, chunksize=16)


def _with_progress(results: Iterator[Spoken], total: int, *, enabled: bool) -> list[Spoken]:
    done: list[Spoken] = []
    seconds = 0.0
    with Progress("Speaking", total, unit="utterances", enabled=enabled) as progress:
        for result in results:
            done.append(result)
            seconds += result.duration_s
            progress.advance(status=f"{seconds / 3600:.2f} h of speech")
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
