"""Draw nested subsets of samples and load their waveforms through a map-style dataset that checks files early.

Faults that a header or the file system shows (missing, empty, no audio, too short, too long) are found when the dataset
is made, before training. Faults that only decoding shows (truncation) are found when an item is read.
"""

from __future__ import annotations

import hashlib
import math
import os
from array import array
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from stat import S_ISREG
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ossicle.addresses import is_address, is_present
from ossicle.audio import SAMPLE_RATE_HZ, audio_duration_s, read_audio
from ossicle.batch import Sample, Skipped, Utterance
from ossicle.errors import AudioError, ConfigError, DataError

OnError = Literal["raise", "skip"]

DURATION_TOLERANCE_S = 0.5
"""Largest difference in seconds between the audio and the manifest's ``duration_s``. Batches are bounded by the
manifest, and a larger difference shows a truncated file."""

UNREAD_SUFFIXES = {".3gp", ".aac", ".ac3", ".amr", ".m4a", ".mka", ".mkv", ".mov", ".mp4", ".webm", ".wma"}
"""Suffixes of files whose headers are read before training, because libsndfile cannot read most of them."""

CHECK_THREADS = 16
"""Threads that check files; they wait for the disk or the network, not for the processor."""

CHECK_CHUNK = 256
"""Files that a thread checks before it reports progress."""


def subset(samples: Sequence[Sample], fraction: float, *, seed: int = 0) -> Sequence[Sample]:
    """Return a seeded share of the samples, in their order; the subset of a smaller fraction lies in a larger one's.

    Every combination of task, language and target language keeps its share: of n samples the first
    ``ceil(fraction * n)`` by a hash of seed and id are taken. The choice does not depend on the order of the samples.

    Raises `ConfigError` unless ``fraction`` is above 0 and at most 1.
    """
    if not 0 < fraction <= 1:
        raise ConfigError(f"data.fraction is {fraction}; set it above 0 and at most 1")
    from ossicle.data.table import outlines, take

    if fraction == 1:
        return samples
    strata: defaultdict[tuple[str | None, ...], list[int]] = defaultdict(list)
    for index, outline in enumerate(outlines(samples)):
        strata[outline.task, outline.language, outline.target_language].append(index)
    chosen: list[int] = []
    for members in strata.values():
        members.sort(key=lambda index: _stable_hash(seed, samples[index].id))
        # 0.1 * 30 is slightly above 3 in floating point, which must not be rounded up to 4
        chosen.extend(members[: math.ceil(fraction * len(members) - 1e-9)])
    return take(samples, sorted(chosen))


def known_duration_s(sample: Sample) -> float:
    """Return the seconds of the utterance as the sample states them. Raises `DataError` if it does not state them."""
    if sample.end_s is not None:
        return sample.end_s - sample.start_s
    if sample.duration_s is None:
        raise DataError(f'{sample.source}: {sample.id!r} has no "duration_s"; add it, or load it with `SpeechDataset`')
    return sample.duration_s


class SpeechDataset(Dataset[Utterance | Skipped]):
    """Utterances by index: ``samples[i]`` with its waveform.

    Every sample has its ``duration_s``, which is read from the file's header if the manifest does not state it.

    Args:
        samples: The samples to load.
        min_duration_s: Shortest utterance in seconds.
        max_duration_s: Longest utterance in seconds.
        on_error: With ``"raise"``, a file that is missing, empty, damaged, too short or too long raises `DataError`.
            With ``"skip"`` it is left out of ``samples``, or returned as `Skipped` if only decoding shows the fault.
            The caller passes these to `record`, and `report` lists them.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        *,
        min_duration_s: float = 0.1,
        max_duration_s: float = 45.0,
        on_error: OnError = "raise",
    ) -> None:
        self.min_duration_s = min_duration_s
        self.max_duration_s = max_duration_s
        self.on_error = on_error
        self.samples, skipped = self._check_all(samples)
        self.given = len(samples)
        self._skipped: dict[tuple[str, str], Skipped] = {}
        self.record(skipped)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Utterance | Skipped:
        sample = self.samples[index]
        try:
            return Utterance(sample, self._read(sample))
        except AudioError as error:
            if self.on_error == "raise":
                raise DataError(_message(Skipped(sample, str(error)))) from error
            return Skipped(sample, str(error))

    @property
    def durations_s(self) -> list[float]:
        """Return the seconds of each utterance."""
        measured = getattr(self.samples, "durations_s", None)  # of a table, whose samples would have to be read
        return [known_duration_s(sample) for sample in self.samples] if measured is None else measured.tolist()

    @property
    def skipped(self) -> list[Skipped]:
        """Return every sample that was left out so far; one that several epochs met is listed once."""
        return list(self._skipped.values())

    def record(self, skipped: Iterable[Skipped]) -> None:
        """Remember samples that were skipped, here or in a worker process of a loader."""
        for item in skipped:
            self._skipped.setdefault((item.sample.source, item.sample.id), item)

    def report(self) -> str:
        """Return the number of skipped utterances, and a line for each."""
        head = f"{len(self._skipped)} of {self.given} utterances skipped"
        return "\n  ".join([head, *map(str, self.skipped)])

    def _read(self, sample: Sample) -> Tensor:
        stated_s = known_duration_s(sample)
        most_s = max(stated_s, self.max_duration_s) + DURATION_TOLERANCE_S
        waveform = read_audio(sample.audio, start_s=sample.start_s, end_s=sample.end_s, most_s=most_s)
        duration_s = len(waveform) / SAMPLE_RATE_HZ
        if abs(duration_s - stated_s) > DURATION_TOLERANCE_S:
            stated = f"it lasts {duration_s:.2f} s where the manifest states {stated_s:.2f} s"
            raise AudioError(f"{sample.audio}: {stated}; one of them is wrong")
        self._check_limits(sample, duration_s)
        return torch.from_numpy(waveform)

    def _check_all(self, samples: Sequence[Sample]) -> tuple[Sequence[Sample], list[Skipped]]:
        """Return the samples that can be used, with their durations, and the others."""
        from ossicle.data.table import stated, take
        from ossicle.progress import Progress  # only large data sets show a progress display

        low, high = self.min_duration_s, self.max_duration_s

        def check_chunk(start: int) -> list[float | Skipped]:
            facts = stated(samples, start, start + CHECK_CHUNK)
            return [
                seconds if low <= seconds <= high and _is_plain(path) else self._checked(samples[index])
                for index, (path, seconds) in enumerate(facts, start)
            ]

        kept, durations_s, bad = array("q"), array("d"), list[Skipped]()
        shown = len(samples) >= 4 * CHECK_CHUNK
        progress = Progress("Checking audio files", len(samples), unit="files", enabled=shown)
        with progress, ThreadPoolExecutor(CHECK_THREADS) as pool:
            for start, chunk in enumerate(pool.map(check_chunk, range(0, len(samples), CHECK_CHUNK))):
                for index, found in enumerate(chunk, start * CHECK_CHUNK):
                    if isinstance(found, Skipped):
                        bad.append(found)
                    else:
                        kept.append(index)
                        durations_s.append(found)
                progress.advance(len(chunk))
        if bad and self.on_error == "raise":
            raise DataError(_message(bad[0], others=len(bad) - 1))
        return take(samples, kept, durations_s), bad

    def _checked(self, sample: Sample) -> float | Skipped:
        """Return the seconds of ``sample``, or why it cannot be used."""
        try:
            sample = _with_duration(sample)
            duration_s = known_duration_s(sample)
            self._check_limits(sample, duration_s)
        except AudioError as error:
            return Skipped(sample, str(error))
        return duration_s

    def _check_limits(self, sample: Sample, duration_s: float) -> None:
        if duration_s < self.min_duration_s:
            limit = f"{duration_s:.3f} s, and data.min_duration_s is {self.min_duration_s}"
            raise AudioError(f"{sample.audio}: is too short: {limit}")
        if duration_s > self.max_duration_s:
            limit = f"{duration_s:.2f} s, and data.max_duration_s is {self.max_duration_s}"
            raise AudioError(f"{sample.audio}: is too long: {limit}")


def _with_duration(sample: Sample) -> Sample:
    """Return ``sample`` with its ``duration_s``, which is read from the header if it is unknown.

    Raises `AudioError` if the file is missing or empty, or if its header is needed and damaged.
    """
    if sample.end_s is not None:
        sample = replace(sample, duration_s=sample.end_s - sample.start_s)
    if sample.duration_s is None:
        duration_s = audio_duration_s(sample.audio)
        if sample.start_s >= duration_s:
            raise AudioError(f"{sample.audio}: start_s is {sample.start_s}, the file lasts {duration_s:.2f} s")
        return replace(sample, duration_s=duration_s - sample.start_s)
    if not _is_plain(str(sample.audio)):
        audio_duration_s(sample.audio)  # it names the fault
    return sample


def _is_plain(path: str) -> bool:
    """Return True for a file that is not empty and whose header need not be read before training."""
    if is_address(path):
        return is_present(path)
    try:
        found = os.stat(path)  # noqa: PTH116 - twice as fast as Path.stat, for millions of files
    except (OSError, ValueError):
        return False
    suffix = os.path.splitext(path)[1].lower()  # noqa: PTH122 - as above
    return found.st_size > 0 and S_ISREG(found.st_mode) and suffix not in UNREAD_SUFFIXES


def _message(skipped: Skipped, others: int = 0) -> str:
    more = f" ({others} more files cannot be used either.)" if others else ""
    sample = skipped.sample
    fix = "Fix the file, remove the line, or set data.on_error: skip."
    return f"{sample.source}: {sample.id!r} cannot be used: {skipped.reason}. {fix}{more}"


def _stable_hash(seed: int, name: str) -> bytes:
    return hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
