"""Open manifests of any size as one sequence of samples.

Small manifests become a list. Large ones become a `SampleTable`, which reads a line when it is used: a list of a
million samples takes 1.5 GB in every process. The functions here do the same for both.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt

from ossicle.batch import Sample
from ossicle.data.manifest import check_path, read_manifest
from ossicle.data.manifest_index import IndexedManifest

LARGE_BYTES = 16 * 2**20
"""Size of all manifests together, in bytes, from which on they are indexed: about 80,000 lines, read in a second."""

Rows = npt.NDArray[np.int64]


def open_manifests(paths: Iterable[str | Path], *, large_bytes: int | None = None) -> Sequence[Sample]:
    """Return the samples of all manifests in file order: a list, or a `SampleTable` from ``large_bytes`` on.

    Raises `ManifestError` at the first invalid line.
    """
    files = [Path(path) for path in paths]
    for file in files:
        check_path(file)
    if sum(file.stat().st_size for file in files) < (LARGE_BYTES if large_bytes is None else large_bytes):
        return [sample for file in files for sample in read_manifest(file)]
    return SampleTable([IndexedManifest.open(file) for file in files])


class SampleTable(Sequence[Sample]):
    """Samples of indexed manifests, or a part of them in any order.

    Args:
        files: the manifests.
        rows: the samples, counted over all ``files``; all of them by default.
        durations_s: seconds of each sample, which replace those that the manifests state.
    """

    def __init__(
        self,
        files: Sequence[IndexedManifest],
        rows: Rows | None = None,
        durations_s: npt.NDArray[np.float64] | None = None,
    ) -> None:
        self.files = files
        self.rows, self.durations_s = rows, durations_s
        self._starts = list(accumulate(map(len, files), initial=0))

    def __len__(self) -> int:
        return self._starts[-1] if self.rows is None else len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> SampleTable: ...
    def __getitem__(self, index: int | slice) -> Sample | SampleTable:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        position = range(len(self))[index]
        row = position if self.rows is None else int(self.rows[position])
        file = bisect_right(self._starts, row) - 1
        sample = self.files[file][row - self._starts[file]]
        if self.durations_s is not None and self.durations_s[position] != sample.duration_s:
            sample = replace(sample, duration_s=float(self.durations_s[position]))
        return sample

    def take(self, positions: Sequence[int] | Rows, durations_s: Sequence[float] | None = None) -> SampleTable:
        """Return the samples at ``positions``, with these durations in seconds if they are given."""
        at = np.asarray(positions, dtype=np.int64)
        known = None if self.durations_s is None else self.durations_s[at]
        durations = known if durations_s is None else np.asarray(durations_s, dtype=np.float64)
        return SampleTable(self.files, at if self.rows is None else self.rows[at], durations)

    def outlines(self) -> Iterator[Sample]:
        """Yield what is common to many lines, for each sample; see `outlines`."""
        kinds: list[Sample] = []
        codes = []
        for file in self.files:
            if file.outlines is None:
                yield from self
                return
            codes.append(file.columns["kind"] + len(kinds))
            kinds += file.outlines
        of_all = np.concatenate(codes)
        yield from (kinds[code] for code in (of_all if self.rows is None else of_all[self.rows]).tolist())

    def stated(self, start: int, stop: int) -> Iterator[tuple[str, float]]:
        """Yield path and stated seconds of the samples from ``start`` to ``stop``; see `stated`."""
        rows = np.arange(start, min(stop, len(self))) if self.rows is None else self.rows[start:stop]
        file_of = np.searchsorted(self._starts, rows, side="right") - 1
        edges = [0, *(np.flatnonzero(np.diff(file_of)) + 1).tolist(), len(rows)]
        for first, end in pairwise(edges):
            if first < end:
                file = int(file_of[first])
                yield from self.files[file].stated(rows[first:end] - self._starts[file])


def take(
    samples: Sequence[Sample], positions: Sequence[int], durations_s: Sequence[float] | None = None
) -> Sequence[Sample]:
    """Return the samples at ``positions``, with these durations in seconds if they are given."""
    if isinstance(samples, SampleTable):
        return samples.take(positions, durations_s)
    taken = [samples[position] for position in positions]
    if durations_s is None:
        return taken
    pairs = zip(taken, durations_s, strict=True)
    return [one if one.duration_s == seconds else replace(one, duration_s=seconds) for one, seconds in pairs]


def outlines(samples: Sequence[Sample]) -> Iterable[Sample]:
    """Return for each sample one with its task, languages and instruction.

    Of the other fields, only two things are known: whether ``text`` is None, blank or something, and whether there are
    answers. No line is read for this, unless almost every line has an instruction of its own.
    """
    return samples.outlines() if isinstance(samples, SampleTable) else samples


def stated(samples: Sequence[Sample], start: int, stop: int) -> Iterator[tuple[str, float]]:
    """Yield for each sample from ``start`` to ``stop`` the path of its audio and its seconds, or NaN if unknown."""
    if isinstance(samples, SampleTable):
        yield from samples.stated(start, stop)
        return
    for sample in samples[start:stop]:
        known = sample.duration_s if sample.end_s is None else sample.end_s - sample.start_s
        yield str(sample.audio), math.nan if known is None else known
