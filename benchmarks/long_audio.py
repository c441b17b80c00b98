"""Measure long recordings: word error rate, memory, and text for silence, noise and music.

    python benchmarks/long_audio.py MANIFEST [--model ears] [--minutes 30]

The recordings of the manifest are joined, with pauses of half a second, to one recording of so many minutes. Its
transcript is compared with those of the same recordings one by one. The peak memory of a process that transcribes 10
minutes is compared with one that transcribes all. Then 100 clips of silence, noise and music without speech are
transcribed; every text is a mistake. The clips are generated. About the length of the recording on two cores.

Must: the word error rate of the whole is at most one point higher, memory grows by less than 10 %, and at most 2 clips
have a text.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from ossicle.audio import SAMPLE_RATE_HZ, read_audio
from ossicle.evaluate.metrics import wer
from ossicle.evaluate.normalise import normaliser
from ossicle.listen.inputs import Recording
from ossicle.listen.long import transcribe, transcript_instruction
from ossicle.models.speech_llm import SpeechLLM

SECONDS = 8


def silent_clips() -> Iterator[tuple[str, np.ndarray]]:
    """Yield 20 clips of silence, 40 of noise and 40 of music, each of `SECONDS` seconds, with their kind."""
    rng, size = np.random.default_rng(0), SECONDS * SAMPLE_RATE_HZ
    time_s = np.arange(size) / SAMPLE_RATE_HZ
    for number in range(20):
        yield "silence", rng.normal(size=size) * (10 ** (rng.uniform(-100, -55) / 20) if number % 2 else 0)
    for number in range(40):
        white = rng.normal(size=size)
        spectrum = np.fft.rfft(white)
        noise = (
            white,
            np.fft.irfft(spectrum / np.sqrt(np.arange(len(spectrum)) + 1)),  # pink
            np.fft.irfft(spectrum / (np.arange(len(spectrum)) + 1)),  # brown
            sum(np.sin(2 * np.pi * 50 * k * time_s + rng.uniform(0, 6)) / k for k in range(1, 9)),  # hum of the mains
            white * (0.2 + np.abs(np.sin(2 * np.pi * rng.uniform(0.1, 0.5) * time_s))),  # waves on a beach
        )[number % 5]
        yield "noise", noise / np.abs(noise).max() * 10 ** (rng.uniform(-40, -3) / 20)
    for number in range(40):
        music, beat_s = np.zeros(size), 60 / rng.uniform(70, 150) / (1 + number % 2)
        scale = 220 * 2 ** (np.array([0, 2, 4, 5, 7, 9, 11, 12]) / 12)
        for start_s in np.arange(0, SECONDS - beat_s, beat_s):
            first = int(start_s * SAMPLE_RATE_HZ)
            note_s = time_s[: min(int(1.5 * beat_s * SAMPLE_RATE_HZ), size - first)]
            for pitch in rng.choice(scale, 1 + number % 3):
                tones = sum(np.sin(2 * np.pi * pitch * k * note_s) / k**1.5 for k in range(1, 7))
                music[first : first + len(note_s)] += tones * np.exp(-3 * note_s)
            if number % 4 == 0:  # a drum
                music[first : first + len(note_s)] += 2 * rng.normal(size=len(note_s)) * np.exp(-30 * note_s)
        yield "music", music / np.abs(music).max() * 10 ** (rng.uniform(-20, -3) / 20)


def join(manifest: Path, minutes: float, out: Path) -> list[dict[str, str]]:
    """Write the joined recording and return the lines that it consists of, again from the first if there are few."""
    lines = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    rng, used, seconds = np.random.default_rng(0), [], 0.0
    with soundfile.SoundFile(out, "w", SAMPLE_RATE_HZ, 1, "PCM_16") as file:
        while seconds < 60 * minutes:
            line = lines[len(used) % len(lines)]
            wave = read_audio(manifest.parent / line["audio"])
            file.write(np.concatenate([wave, 1e-4 * rng.normal(size=SAMPLE_RATE_HZ // 2)]))
            seconds += len(wave) / SAMPLE_RATE_HZ + 0.5
            used.append({"text": line["text"], "audio": str(manifest.parent / line["audio"])})
    return used


def heard(model: str, path: Path, queue: multiprocessing.Queue) -> None:
    """Put the transcript of a recording, the seconds that it took and the peak memory in MB into ``queue``."""
    warnings.simplefilter("ignore")
    loaded = SpeechLLM.from_pretrained(model)
    started = time.perf_counter()
    text = " ".join(segment.text for segment in transcribe(loaded, path))
    seconds = time.perf_counter() - started
    queue.put((text, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def in_process(model: str, path: Path) -> tuple[str, float, float]:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=heard, args=(model, path, queue))
    process.start()
    found: tuple[str, float, float] = queue.get()
    process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path, nargs="?", help="recordings with transcripts; none longer than a window")
    parser.add_argument("--model", default="ears")
    parser.add_argument("--minutes", type=float, default=30)
    options = parser.parse_args()
    if options.manifest is None:
        print("skipped: give a manifest of recordings with transcripts")
        return
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        short, long = Path(folder) / "short.wav", Path(folder) / "long.wav"
        join(options.manifest, 10, short)
        lines = join(options.manifest, options.minutes, long)
        duration_s = Recording(long).duration_s
        _, _, short_mb = in_process(options.model, short)
        text, seconds, long_mb = in_process(options.model, long)
    model = SpeechLLM.from_pretrained(options.model)
    asked = transcript_instruction(model)
    one_by_one = []
    for start in range(0, len(lines), 8):
        one_by_one += model.generate([line["audio"] for line in lines[start : start + 8]], asked)
    reference = " ".join(line["text"] for line in lines)
    whole, single = (
        wer([heard], [[reference]], "en", normalise=normaliser("whisper", "en")).value
        for heard in (text, " ".join(one_by_one))
    )
    mistakes = {"silence": 0, "noise": 0, "music": 0}
    for kind, clip in silent_clips():
        clip = clip.astype(np.float32)
        mistakes[kind] += bool(list(transcribe(model, clip)))
    print(f"one recording of {duration_s / 60:.1f} minutes, {len(lines)} utterances, model {options.model}")
    print(f"  word error rate: {whole:.1f}, the same utterances one by one {single:.1f}")
    print(f"  real-time factor: {seconds / duration_s:.2f}")
    print(f"  peak memory: {long_mb:.0f} MB, of 10 minutes {short_mb:.0f} MB ({100 * (long_mb / short_mb - 1):+.1f} %)")
    print(f"  texts for clips without speech: {mistakes} of 20, 40 and 40")


if __name__ == "__main__":
    main()
