"""Is the audio there, is it speech at the rate that its header states, and does the transcript fit its length?"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import soundfile

from ossicle.audio import SAMPLE_RATE_HZ, read_audio
from ossicle.batch import Sample
from ossicle.data.dataset import SpeechDataset, known_duration_s, subset
from ossicle.doctor.finding import Report, listed
from ossicle.errors import AudioError, DataError, ManifestError
from ossicle.train.batches import read_all
from ossicle.train.recipe import Config

LISTENED = 64
"""Utterances that are decoded."""
RATES_CHARACTERS_PER_S = (1.5, 35.0)
"""Of speech in alphabetic scripts: slower or faster, the transcript or the sample rate is wrong. Read speech has 10 to
20."""
SILENCE_DBFS = -60.0
CLIPPED = 0.999
CLIPPED_SHARE = 0.01
DURATION_FACTOR = 1.1
"""Beyond it, a duration that differs from the manifest's is not rounding but a wrong rate."""


@dataclass(frozen=True)
class _Heard:
    sample: Sample
    rate_hz: int
    duration_s: float
    level_dbfs: float
    clipped: float
    """Share of samples at full scale."""


def check_audio(config: Config, report: Report) -> list[Sample]:
    """The training samples that can be used. Nothing else is looked at where there are none."""
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
            fix = "mend or remove these lines, or set data.on_error=skip to train without them"
            reasons = listed(f"{item.sample.source}: {item.reason}" for item in dataset.skipped)
            say(
                "files",
                f"{len(dataset.skipped)} of {dataset.given} utterances of {name} cannot be used: {reasons}",
                fix,
            )
    found = usable["data.train"]
    if not found:
        report.error("data", "no utterance of data.train is left", "mend what is listed above")
        return []
    hours = sum(map(known_duration_s, found)) / 3600
    report.ok(
        "data",
        f"{len(found):,} utterances, {hours:.2f} h, {min(map(known_duration_s, found)):.1f} to "
        f"{max(map(known_duration_s, found)):.1f} s",
    )
    _check_heard(_listen(found, report), report)
    return found


def _listen(samples: list[Sample], report: Report) -> list[_Heard]:
    """Decode a few, drawn at random; what cannot be decoded is an error."""
    heard, broken = [], []
    for sample in random.Random(0).sample(samples, min(LISTENED, len(samples))):
        try:
            waveform = read_audio(sample.audio, start_s=sample.start_s, end_s=sample.end_s)
            rate_hz = soundfile.info(sample.audio).samplerate
        except (AudioError, DataError) as error:
            broken.append(f"{sample.source}: {error}")
            continue
        level = 10 * np.log10(np.mean(np.square(waveform, dtype=np.float64)) + 1e-20)
        clipped = float(np.mean(np.abs(waveform) >= CLIPPED))
        heard.append(_Heard(sample, rate_hz, len(waveform) / SAMPLE_RATE_HZ, float(level), clipped))
    if broken:
        report.error(
            "decoding",
            f"{len(broken)} of {len(heard) + len(broken)} cannot be decoded: {listed(broken)}",
            "mend or remove these lines",
        )
    return heard


def _check_heard(heard: list[_Heard], report: Report) -> None:
    count = len(heard)

    def failing(wrong: Callable[[_Heard], bool]) -> list[str]:
        return [f"{item.sample.source} ({item.sample.audio.name})" for item in heard if wrong(item)]

    before = len(report.findings)
    if found := failing(_other_length):
        report.error(
            "sample rate",
            f"{len(found)} of {count} files last another time than the manifest states, as "
            f"when the header states a wrong sample rate: {listed(found)}",
            "write the files with the rate that they were recorded at, or correct duration_s",
        )
    if found := failing(_strange_pace):
        low, high = RATES_CHARACTERS_PER_S
        report.error(
            "pace",
            f"in {len(found)} of {count} the transcript has fewer than {low} or more than {high} "
            f"characters for a second of audio: {listed(found)}",
            "check the sample rate in the header and that text and audio belong together",
        )
    if found := failing(lambda item: item.rate_hz < SAMPLE_RATE_HZ):
        report.warning(
            "sample rate",
            f"{len(found)} of {count} files are below {SAMPLE_RATE_HZ} Hz and lack the high "
            f"frequencies that the encoder knows: {listed(found)}",
            "use the original recordings, if they have a higher rate",
        )
    if found := failing(lambda item: item.level_dbfs < SILENCE_DBFS):
        report.warning(
            "level",
            f"{len(found)} of {count} are silent (below {SILENCE_DBFS:.0f} dBFS): {listed(found)}",
            "remove them: there is nothing to hear",
        )
    if found := failing(lambda item: item.clipped > CLIPPED_SHARE):
        report.warning(
            "level", f"{len(found)} of {count} are clipped: {listed(found)}", "lower the gain where they are made"
        )
    if len(report.findings) == before and heard:
        levels = sorted(item.level_dbfs for item in heard)
        report.ok(
            "sound",
            f"{count} utterances decoded: rates and paces plausible, level around {levels[count // 2]:.0f} dBFS",
        )


def _other_length(item: _Heard) -> bool:
    stated_s = known_duration_s(item.sample)
    return not 1 / DURATION_FACTOR < item.duration_s / stated_s < DURATION_FACTOR


def _strange_pace(item: _Heard) -> bool:
    """Only of scripts with an alphabet, and of more than a word or two."""
    text = item.sample.text or ""
    if len(text) < 12 or not text.isascii():
        return False
    low, high = RATES_CHARACTERS_PER_S
    return not low < len(text) / item.duration_s < high
