"""Which utterances make a batch: bounded by count and by seconds, seeded, shared among ranks, resumable.

A plan (all batches of an epoch, for all ranks) depends on the arguments, the seed and the epoch alone, so every rank
computes the same one and takes its part, and a run resumes in the middle of an epoch without reading audio.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Literal

import numpy as np
from torch.utils.data import Sampler

logger = logging.getLogger(__name__)

CHUNK_BATCHES = 50
"""Batches' worth of shuffled utterances that are sorted by duration together: more pads less, and mixes less."""


@dataclass(eq=False, kw_only=True)
class BatchSampler(Sampler[list[int]]):
    """Lists of indices into ``durations_s``; give it to a loader as ``batch_sampler``.

    A batch holds at most ``batch_size`` utterances and costs at most ``max_batch_s`` seconds, padding included; an
    utterance longer than that is a batch of its own. Call `set_epoch` before each epoch.
    """

    durations_s: Sequence[float]
    batch_size: int
    max_batch_s: float = math.inf
    order: Literal["random", "duration"] = "random"
    """``random`` for a contrastive loss, whose negatives must not share their length; ``duration`` pads less."""
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    remainder: Literal["wrap", "drop", "keep"] = "wrap"
    """Batches that do not fill a round of ranks: fill it with the first ones again, drop them, or (for evaluation)
    keep them, so that some ranks have one batch fewer. Only wrap and drop give each rank the same number."""
    min_batch_size: int = 1
    """Smaller batches are dropped, with a warning: 2 for a contrastive loss, which needs a negative."""
    tasks: Sequence[str | None] | None = None
    """The task of each utterance; needed for ``mixture_weights``."""
    mixture_weights: Mapping[str, float] | None = None
    """How often an utterance of each task is drawn, relative to the others (1 where not given); see `mixture`."""
    curriculum_epochs: int = 0
    """Short utterances first: of so many first epochs, the k-th has the shortest k / (curriculum_epochs + 1) of all."""
    epoch: int = 0
    _start: int = field(default=0, init=False)
    _plan: tuple[int, list[list[int]]] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.batch_size < 1 or not self.max_batch_s > 0:
            raise ValueError(f"batch_size {self.batch_size} and max_batch_s {self.max_batch_s} must be above 0")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank {self.rank} is not one of {self.world_size}")
        if self.mixture_weights is not None and (self.tasks is None or len(self.tasks) != len(self.durations_s)):
            raise ValueError("mixture weights need the task of every utterance: pass tasks, one for each duration")

    def set_epoch(self, epoch: int) -> None:
        """Shuffle anew, as ``epoch`` and the seed say, and begin at its first batch."""
        self.epoch = epoch
        self._start = 0

    def start(self, batch_index: int) -> None:
        """Let the next iteration begin at this rank's batch ``batch_index`` of the epoch: where a run was stopped."""
        if not 0 <= batch_index <= len(self):
            raise ValueError(f"cannot start at batch {batch_index}: epoch {self.epoch} has {len(self)} of them")
        self._start = batch_index

    def __len__(self) -> int:
        """Batches of this rank in the whole epoch, wherever iteration starts; differs between epochs."""
        return len(range(self.rank, len(self._batches()), self.world_size))

    def __iter__(self) -> Iterator[list[int]]:
        first = self.rank + self._start * self.world_size
        self._start = 0
        yield from self._batches()[first :: self.world_size]

    def _batches(self) -> list[list[int]]:
        """The batches of all ranks; round ``k`` of the ranks is batches ``k * world_size`` and following."""
        if self._plan is None or self._plan[0] != self.epoch:
            self._plan = (self.epoch, self._make_plan())
        return self._plan[1]

    def _make_plan(self) -> list[list[int]]:
        random = np.random.default_rng((self.seed, self.epoch))
        batches = self._without_small(self._pack(self._indices(random)))
        # Whole rounds are shuffled, so that in each round the ranks work on batches of like length
        whole = len(batches) - len(batches) % self.world_size
        rounds = [batches[start : start + self.world_size] for start in range(0, whole, self.world_size)]
        tail = batches[whole:]
        if self.order == "duration":
            rounds = [rounds[index] for index in random.permutation(len(rounds))]
        if tail and self.remainder == "wrap":
            tail = list(islice(cycle(tail + batches[:whole]), self.world_size))
        elif self.remainder == "drop":
            tail = []
        return [batch for round_ in rounds for batch in round_] + tail

    def _indices(self, random: np.random.Generator) -> list[int]:
        if self.mixture_weights is None or self.tasks is None:
            indices = random.permutation(len(self.durations_s))
        else:
            indices = random.permutation(mixture(self.tasks, self.mixture_weights, random))
        durations_s = np.asarray(self.durations_s)
        if self.epoch < self.curriculum_epochs:
            count = math.ceil(len(indices) * (self.epoch + 1) / (self.curriculum_epochs + 1))
            shortest = np.argsort(durations_s[indices], kind="stable")[:count]
            indices = indices[np.sort(shortest)]
        if self.order == "random":
            return indices.tolist()
        chunk = CHUNK_BATCHES * self.batch_size
        chunks = [indices[start : start + chunk] for start in range(0, len(indices), chunk)]
        return [int(index) for part in chunks for index in part[np.argsort(durations_s[part], kind="stable")]]

    def _pack(self, indices: list[int]) -> list[list[int]]:
        """Consecutive indices, each batch as large as its two bounds allow."""
        batches: list[list[int]] = []
        longest_s = 0.0
        for index in indices:
            longest_s = max(longest_s, self.durations_s[index])
            size = len(batches[-1]) + 1 if batches else math.inf
            if size > self.batch_size or size * longest_s > self.max_batch_s:
                batches.append([])
                longest_s = self.durations_s[index]
            batches[-1].append(index)
        return batches

    def _without_small(self, batches: list[list[int]]) -> list[list[int]]:
        kept = [batch for batch in batches if len(batch) >= self.min_batch_size]
        lost = sum(map(len, batches)) - sum(map(len, kept))
        if lost:
            fix = "raise max_batch_s or lower max_duration_s if they are many"
            logger.warning("epoch %d leaves out %d utterances in batches that are too small: %s", self.epoch, lost, fix)
        return kept


def mixture(tasks: Sequence[str | None], weights: Mapping[str, float], random: np.random.Generator) -> np.ndarray:
    """Indices into ``tasks``, as many as there are: an utterance of task t is drawn in proportion to ``weights[t]``.

    ``{"asr": 1, "st": 2}`` draws each st utterance twice as often as each asr utterance. Within a task all are drawn
    equally often, but for the remainder of the division, which ``random`` chooses. Raises ``ValueError`` for a weight
    below 0, a task that no utterance has, and weights that leave nothing.
    """
    counts = Counter(tasks)
    unknown = weights.keys() - counts.keys()
    if unknown:
        raise ValueError(f"mixture weights name tasks the data does not have: {sorted(unknown)}; it has {list(counts)}")
    names = list(counts)
    masses = np.array([counts[name] * (1.0 if name is None else weights.get(name, 1.0)) for name in names])
    if (masses < 0).any() or masses.sum() == 0:
        raise ValueError(f"mixture weights {dict(weights)} must be 0 or above, and not all 0")
    draws = _apportion(masses, len(tasks))
    drawn = []
    for name, count in zip(names, draws, strict=True):
        members = np.flatnonzero([task == name for task in tasks])
        repeats, rest = divmod(count, len(members))
        drawn += [np.tile(members, repeats), random.choice(members, rest, replace=False)]
    return np.concatenate(drawn)


def padding_share(durations_s: Sequence[float]) -> float:
    """The part of a batch of these durations that is padding, 0 to 1."""
    return 1.0 - sum(durations_s) / (max(durations_s) * len(durations_s))


def _apportion(masses: np.ndarray, total: int) -> list[int]:
    """Whole numbers in proportion to ``masses`` that add up to ``total``, by largest remainder."""
    exact = masses / masses.sum() * total
    shares = np.floor(exact).astype(int)
    for index in np.argsort(shares - exact, kind="stable")[: total - shares.sum()]:
        shares[index] += 1
    return shares.tolist()
