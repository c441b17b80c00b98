"""Check that the audio exists, has the sample rate of its header, and fits the length of its transcript."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ossicle.audio import SAMPLE_RATE_HZ, TOLERANCE_S, read_audio
from ossicle.audio_decoding import cancelling
from ossicle.audio_headers import opened
from ossicle.batch import Sample
from ossicle.data.dataset import SpeechDataset, known_duration_s, subset
from ossicle.doctor.finding import Report, listed
from ossicle.errors import AudioError, DataError, ManifestError
from ossicle.train.batches import read_all
from ossicle.train.recipe import Config

DECODED = 64
"""Number of utterances that are decoded."""
RATES_CHARACTERS_PER_S = (1.5, 35.0)
"""Lowest and highest plausible number of characters per second in alphabetic scripts; read speech has 10 to 20. Outside
this range the transcript or the sample rate is wrong."""
SILENCE_DBFS = -60.0
"""Level in dB relative to full scale below which an utterance is silent."""
CLIPPED = 0.999
"""Absolute value from which on a sample is clipped."""
CLIPPED_SHARE = 0.01
"""Share of clipped samples above which an utterance is reported."""
DURATION_FACTOR = 1.1
"""Largest ratio of measured and stated duration that rounding explains; a larger one shows a wrong sample rate."""


@dataclass(frozen=True)
class _Decoded:
    sample: Sample
    rate_hz: int
    duration_s: float
    level_dbfs: float
    clipped: float
    """Share of clipped samples."""
    cancelled: bool
    """True if the channels cancel each other."""


def check_audio(config: Config, report: Report) -> Sequence[Sample]:
    """Check the audio of training and development data, and return the training samples that can be used."""
    try:
        samples = subset(read_all(config.data.train), config.data.fraction, seed=config.data.seed)
        dev = read_all(config.data.dev)
    except ManifestError as error:
        report.error("manifest", str(error), "see data.train and data.dev")
        return []
    limits = {"min_duration_s": config.data.min_duration_s, "max_duration_s": config.data.max_duration_s}
    usable = {}
    for name, part in (("data.train", samples), ("data.dev", dev)):
        dataset = SpeechDataset(part, on_error="skip", **limits)
        usable[name] = dataset.samples
        if dataset.skipped:
            say = report.error if config.data.on_error == "raise" else report.warning
            fix = "fix or remove these lines, or set data.on_error=skip to train without them"
            reasons = listed(f"{item.sample.source}: {item.reason}" for item in dataset.skipped)
            say(
                "files",
                f"{len(dataset.skipped)} of {dataset.given} utterances of {name} cannot be used: {reasons}",
                fix,
            )
    found = usable["data.train"]
    if not found:
        report.error("data", "no utterance of data.train is left", "fix the errors above")
        return []
    hours = sum(map(known_duration_s, found)) / 3600
    report.ok(
        "data",
        f"{len(found):,} utterances, {hours:.2f} h, {min(map(known_duration_s, found)):.1f} to "
        f"{max(map(known_duration_s, found)):.1f} s",
    )
    _check_decoded(_decode(found, report), report)
    return found


def _decode(samples: Sequence[Sample], report: Report) -> list[_Decoded]:
    """Decode some samples, drawn at random, and report those that cannot be decoded."""
    decoded, broken = [], []
    for sample in random.Random(0).sample(samples, min(DECODED, len(samples))):
        try:
            waveform = read_audio(sample.audio, start_s=sample.start_s, end_s=sample.end_s)
            with opened(sample.audio, TOLERANCE_S) as file:
                rate_hz = file.samplerate
        except (AudioError, DataError) as error:
            broken.append(f"{sample.source}: {error}")
            continue
        level = 10 * np.log10(np.mean(np.square(waveform, dtype=np.float64)) + 1e-20)
        clipped = float(np.mean(np.abs(waveform) >= CLIPPED))
        duration_s = len(waveform) / SAMPLE_RATE_HZ
        decoded.append(_Decoded(sample, rate_hz, duration_s, float(level), clipped, _cancelled(sample)))
    if broken:
        report.error(
            "decoding",
            f"{len(broken)} of {len(decoded) + len(broken)} cannot be decoded: {listed(broken)}",
            "fix or remove these lines",
        )
    return decoded


def _check_decoded(decoded: list[_Decoded], report: Report) -> None:
    count = len(decoded)

    def failing(wrong: Callable[[_Decoded], bool]) -> list[str]:
        return [f"{item.sample.source} ({item.sample.audio.name})" for item in decoded if wrong(item)]

    before = len(report.findings)
    if found := failing(_other_length):
        report.error(
            "sample rate",
            f"{len(found)} of {count} files do not have the duration that the manifest states; a wrong sample rate in "
            f"the header is a common cause: {listed(found)}",
            "write the files with the rate at which they were recorded, or correct duration_s",
        )
    if found := failing(_strange_pace):
        low, high = RATES_CHARACTERS_PER_S
        report.error(
            "pace",
            f"in {len(found)} of {count} the transcript has fewer than {low} or more than {high} "
            f"characters per second of audio: {listed(found)}",
            "check the sample rate in the header, and that text and audio belong together",
        )
    if found := failing(lambda item: item.rate_hz < SAMPLE_RATE_HZ):
        report.warning(
            "sample rate",
            f"{len(found)} of {count} files are below {SAMPLE_RATE_HZ} Hz and lack the high frequencies that the "
            f"encoder expects: {listed(found)}",
            "use the original recordings if they have a higher rate",
        )
    if found := failing(lambda item: item.level_dbfs < SILENCE_DBFS):
        report.warning(
            "level",
            f"{len(found)} of {count} are silent (below {SILENCE_DBFS:.0f} dBFS): {listed(found)}",
            "remove them, because they contain no speech",
        )
    if found := failing(lambda item: item.clipped > CLIPPED_SHARE):
        report.warning(
            "level", f"{len(found)} of {count} are clipped: {listed(found)}", "record or convert them with less gain"
        )
    if found := failing(lambda item: item.cancelled):
        report.warning(
            "channels",
            f"in {len(found)} of {count} the channels cancel each other (inverted phase); the loudest channel is read: "
            f"{listed(found)}",
            "keep one channel of each file",
        )
    if len(report.findings) == before and decoded:
        levels = sorted(item.level_dbfs for item in decoded)
        report.ok(
            "sound",
            f"{count} utterances decoded: sample rates and paces are plausible, median level "
            f"{levels[count // 2]:.0f} dBFS",
        )


def _cancelled(sample: Sample) -> bool:
    with opened(sample.audio, TOLERANCE_S) as file:
        if file.channels == 1:
            return False
        start = round(sample.start_s * file.samplerate)
        length = round(known_duration_s(sample) * file.samplerate)
        file.seek(min(start, max(0, file.frames - 1)))
        frames = file.read(length, dtype="float32", always_2d=True)
    return cancelling(frames, frames.mean(axis=1)) is not None


def _other_length(item: _Decoded) -> bool:
    stated_s = known_duration_s(item.sample)
    return not 1 / DURATION_FACTOR < item.duration_s / stated_s < DURATION_FACTOR


def _strange_pace(item: _Decoded) -> bool:
    """Return True for an implausible pace; texts that are short or not ASCII are not judged."""
    text = item.sample.text or ""
    if len(text) < 12 or not text.isascii():
        return False
    low, high = RATES_CHARACTERS_PER_S
    return not low < len(text) / item.duration_s < high
