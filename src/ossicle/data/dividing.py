"""Divide the batches that were planned for N processes among M, when a run resumes with another number.

A round is the batches that N processes use at the same time. Each round keeps its utterances, so that the optimiser
steps keep theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from ossicle.errors import ConfigError

Indices = list[int]


def batches_per_round(planned_for: int, world_size: int, *, joined: bool) -> int:
    """Return the number of batches that each of ``world_size`` processes uses in a round of ``planned_for`` batches.

    A loss that compares utterances needs the round at once (``joined``). Other losses read it in parts, which need no
    more memory than the planned batches.
    """
    return 1 if joined else -(-planned_for // world_size)


def divide(
    batches: Sequence[Indices], planned_for: int, rank: int, world_size: int, *, joined: bool, may_be_empty: bool
) -> list[Indices]:
    """Return the batches of process ``rank`` of ``world_size``, from ``batches`` in rounds of ``planned_for``.

    Whole batches are given to a process, joined or divided, if the numbers and the batches allow it. Otherwise a round
    is divided evenly. Raises `ConfigError` if a round has fewer utterances than there are parts, unless they
    ``may_be_empty``.
    """
    own_parts = batches_per_round(planned_for, world_size, joined=joined)
    found: list[Indices] = []
    for start in range(0, len(batches), planned_for):
        parts = _parts(batches[start : start + planned_for], world_size * own_parts)
        if not all(parts) and not may_be_empty:
            count = sum(map(len, parts))
            raise ConfigError(
                f"{world_size} processes cannot continue a run of {planned_for}: a step has {count} utterances in "
                f"{planned_for} batches, too few to divide: start {planned_for} processes, or fewer"
            )
        found += parts[rank * own_parts : (rank + 1) * own_parts]
    return found


def _parts(round_: Sequence[Indices], count: int) -> list[Indices]:
    """Divide the batches ``round_`` into ``count`` parts."""
    if len(round_) % count == 0:
        each = len(round_) // count
        return [_joined(round_[i * each : (i + 1) * each]) for i in range(count)]
    each = count // len(round_)
    if count % len(round_) == 0 and min(map(len, round_)) >= each:
        return [part for batch in round_ for part in _evenly(batch, each)]
    return _evenly(_joined(round_), count)


def _joined(batches: Sequence[Indices]) -> Indices:
    return [index for batch in batches for index in batch]


def _evenly(indices: Indices, count: int) -> list[Indices]:
    edges = [i * len(indices) // count for i in range(count + 1)]
    return [indices[start:stop] for start, stop in pairwise(edges)]
