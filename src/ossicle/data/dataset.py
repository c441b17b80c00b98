"""From samples to waveforms: nested subsets, the duration filter, and a map-style dataset that checks files early.

What a header or the file system can tell (missing, empty, no audio, too short, too long) is found when the dataset is
made, before training; what only decoding can tell (truncation) is found when the item is read.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Literal

import torch
from rich.progress import track
from torch import Tensor
from torch.utils.data import Dataset

from ossicle.audio import SAMPLE_RATE_HZ, audio_duration_s, read_audio
from ossicle.batch import Sample, Skipped, Utterance
from ossicle.errors import AudioError, DataError

OnError = Literal["raise", "skip"]

DURATION_TOLERANCE_S = 0.5
"""How far the audio may be from the manifest's ``duration_s``: batches are bounded by it, and a cut file shows so."""

PROBE_THREADS = 16
"""Opening files waits for the disk or the network, not for the processor."""

PROBE_CHUNK = 256
"""Files a thread probes before it reports back."""


def subset(samples: Sequence[Sample], fraction: float, *, seed: int = 0) -> list[Sample]:
    """A seeded share of the samples, in their order; a smaller fraction's subset lies within a larger one's.

    Each (task, language, target language) keeps its share: there the first ``ceil(fraction * n)`` by a hash of seed and
    id are taken. The choice depends on the ids alone, not on the order of the manifest.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"data.fraction is {fraction}; it must be above 0 and at most 1")
    strata: defaultdict[tuple[str | None, ...], list[int]] = defaultdict(list)
    for index, sample in enumerate(samples):
        strata[sample.task, sample.language, sample.target_language].append(index)
    chosen: list[int] = []
    for members in strata.values():
        members.sort(key=lambda index: _stable_hash(seed, samples[index].id))
        # 0.1 * 30 is a little above 3 in floating point, which must not make it 4
        chosen.extend(members[: math.ceil(fraction * len(members) - 1e-9)])
    return [samples[index] for index in sorted(chosen)]


def within_duration(samples: Iterable[Sample], min_duration_s: float, max_duration_s: float) -> list[Sample]:
    """The samples that last between the two, both included: a choice, where `SpeechDataset` has limits to enforce."""
    return [sample for sample in samples if min_duration_s <= known_duration_s(sample) <= max_duration_s]


def known_duration_s(sample: Sample) -> float:
    """Seconds of the utterance as the sample states them; raises `DataError` if only the file could tell."""
    if sample.end_s is not None:
        return sample.end_s - sample.start_s
    if sample.duration_s is None:
        raise DataError(f"{sample.source}: {sample.id!r} has no duration_s; call `fill_durations` first")
    return sample.duration_s


def fill_durations(samples: Sequence[Sample], *, on_error: OnError = "raise") -> tuple[list[Sample], list[Skipped]]:
    """The samples with ``duration_s`` set, from the file's header where the manifest is silent; and those left out.

    Every file is at least looked for. Raises `DataError` for the first bad one unless ``on_error`` is ``"skip"``.
    """
    return _probe_all(samples, _with_duration, on_error)


class SpeechDataset(Dataset[Utterance | Skipped]):
    """Utterances by index: ``samples[i]`` with its waveform.

    With ``on_error="raise"`` a file that is missing, empty, broken, too short or too long raises `DataError`. With
    ``"skip"`` it is left out of ``samples`` if that shows before decoding, and else comes as `Skipped`; the training
    loop hands those to `record`, and `report` lists all of them.
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
        self.samples, skipped = _probe_all(samples, self._checked, on_error)
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
        """Seconds of each utterance, for a sampler."""
        return [known_duration_s(sample) for sample in self.samples]

    @property
    def skipped(self) -> list[Skipped]:
        """Every sample left out so far, each once however many epochs met it."""
        return list(self._skipped.values())

    def record(self, skipped: Iterable[Skipped]) -> None:
        """Remember what was skipped, here or in a loader's worker."""
        for item in skipped:
            self._skipped.setdefault((item.sample.source, item.sample.id), item)

    def report(self) -> str:
        """One line if nothing was skipped, else the count and the list."""
        head = f"{len(self._skipped)} of {self.given} utterances skipped"
        return "\n  ".join([head, *map(str, self.skipped)])

    def _read(self, sample: Sample) -> Tensor:
        waveform = read_audio(sample.audio, start_s=sample.start_s, end_s=sample.end_s)
        duration_s = len(waveform) / SAMPLE_RATE_HZ
        stated_s = known_duration_s(sample)
        if abs(duration_s - stated_s) > DURATION_TOLERANCE_S:
            stated = f"it lasts {duration_s:.2f} s where the manifest states {stated_s:.2f} s"
            raise AudioError(f"{sample.audio}: {stated}; one of them is wrong")
        self._check_limits(sample, duration_s)
        return torch.from_numpy(waveform)

    def _checked(self, sample: Sample) -> Sample:
        sample = _with_duration(sample)
        self._check_limits(sample, known_duration_s(sample))
        return sample

    def _check_limits(self, sample: Sample, duration_s: float) -> None:
        if duration_s < self.min_duration_s:
            limit = f"{duration_s:.3f} s, and data.min_duration_s is {self.min_duration_s}"
            raise AudioError(f"{sample.audio}: is too short: {limit}")
        if duration_s > self.max_duration_s:
            limit = f"{duration_s:.2f} s, and data.max_duration_s is {self.max_duration_s}"
            raise AudioError(f"{sample.audio}: is too long: {limit}")


def _with_duration(sample: Sample) -> Sample:
    """Raises `AudioError` where the file is missing or empty, or its header is needed and wrong."""
    if sample.end_s is not None:
        sample = replace(sample, duration_s=sample.end_s - sample.start_s)
    if sample.duration_s is None:
        duration_s = audio_duration_s(sample.audio)
        if sample.start_s >= duration_s:
            raise AudioError(f"{sample.audio}: start_s is {sample.start_s}, the file lasts {duration_s:.2f} s")
        return replace(sample, duration_s=duration_s - sample.start_s)
    try:
        size = os.stat(sample.audio).st_size  # noqa: PTH116 - half the time of Path.stat, for millions of files
    except OSError as error:
        raise AudioError(f"{sample.audio}: there is no such file") from error
    if size == 0:
        raise AudioError(f"{sample.audio}: the file is empty (0 bytes)")
    return sample


def _probe_all(
    samples: Sequence[Sample], probe: Callable[[Sample], Sample], on_error: OnError
) -> tuple[list[Sample], list[Skipped]]:
    """``probe`` over all samples in threads: what it returned, and the samples for which it raised `AudioError`."""

    def probe_chunk(start: int) -> list[Sample | Skipped]:
        return [attempt(sample) for sample in samples[start : start + PROBE_CHUNK]]

    def attempt(sample: Sample) -> Sample | Skipped:
        try:
            return probe(sample)
        except AudioError as error:
            return Skipped(sample, str(error))

    starts = range(0, len(samples), PROBE_CHUNK)
    good: list[Sample] = []
    bad: list[Skipped] = []
    with ThreadPoolExecutor(PROBE_THREADS) as pool:
        chunks = pool.map(probe_chunk, starts)
        quiet = len(samples) < 4 * PROBE_CHUNK
        for chunk in track(chunks, "Checking audio files", total=len(starts), disable=quiet, transient=True):
            for item in chunk:
                if isinstance(item, Skipped):
                    bad.append(item)
                else:
                    good.append(item)
    if bad and on_error == "raise":
        raise DataError(_message(bad[0], others=len(bad) - 1))
    return good, bad


def _message(skipped: Skipped, others: int = 0) -> str:
    more = f" ({others} more files cannot be used either.)" if others else ""
    sample = skipped.sample
    fix = "Fix the file, remove the line, or set data.on_error: skip."
    return f"{sample.source}: {sample.id!r} cannot be used: {skipped.reason}. {fix}{more}"


def _stable_hash(seed: int, name: str) -> bytes:
    return hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
