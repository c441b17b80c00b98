"""Plan the batches of an epoch: bounded by count and by seconds, seeded, shared among ranks, resumable.

A plan holds all batches of an epoch for all ranks. It depends only on the arguments, the seed and the epoch. Every rank
therefore computes the same plan and takes its part, and a run resumes in the middle of an epoch without reading audio.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from ossicle.errors import ConfigError

logger = logging.getLogger(__name__)

CHUNK_BATCHES = 50
"""Number of batches whose utterances are shuffled first and then sorted by duration together. A larger number gives
less padding, but less random batches."""


@dataclass(eq=False, kw_only=True)
class BatchSampler(Sampler[list[int]]):
    """Yield batches as lists of indices into ``durations_s``; pass it to a loader as ``batch_sampler``.

    A batch has at most ``batch_size`` utterances, at most ``max_batch_s`` seconds including padding, and at most
    ``max_batch_tokens`` of ``tokens``. A longer utterance is a batch of its own. Every rank has the same number of
    batches: if they do not fill the last round of ranks, the first batches are repeated there. Call `set_epoch` before
    each epoch.

    Raises `ConfigError` for invalid bounds or mixture weights.
    """

    durations_s: Sequence[float]
    batch_size: int
    max_batch_s: float = math.inf
    max_batch_tokens: float = math.inf
    tokens: Sequence[int] | npt.NDArray[np.int64] = ()
    """Positions of each utterance in the LLM; required for ``max_batch_tokens``."""
    pads_tokens: bool = False
    """True if positions of padding count too, because the LLM computes them."""
    order: Literal["random", "duration"] = "random"
    """``random`` suits a contrastive loss, whose negatives should differ in length; ``duration`` pads less."""
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    planned_for: int = 0
    """Number of processes whose batches are divided among the ``world_size`` ones (`ossicle.data.dividing`). 0 stands
    for the same number."""
    min_batch_size: int = 1
    """Smaller batches are dropped with a warning. A contrastive loss needs at least 2, for a negative."""
    tasks: Sequence[str | None] | None = None
    """Task of each utterance; required for ``mixture_weights``."""
    mixture_weights: Mapping[str, float] | None = None
    """Relative frequency of an utterance of each task (default 1); see `mixture`."""
    curriculum_epochs: int = 0
    """Number c of first epochs with short utterances only: the k-th has the shortest k / (c + 1) of all."""
    epoch: int = 0
    _start: int = field(default=0, init=False)
    _plan: tuple[int, list[list[int]]] | None = field(default=None, init=False, repr=False)
    may_be_empty = False

    def __post_init__(self) -> None:
        self.planned_for = self.planned_for or self.world_size
        if self.batch_size < 1 or not min(self.max_batch_s, self.max_batch_tokens) > 0:
            raise ConfigError(
                f"batch_size {self.batch_size}, max_batch_s {self.max_batch_s} and max_batch_tokens "
                f"{self.max_batch_tokens} must be above 0"
            )
        if self.max_batch_tokens < math.inf and len(self.tokens) != len(self.durations_s):
            raise ValueError("max_batch_tokens needs the tokens of every utterance: pass tokens, one for each duration")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank {self.rank} is not one of {self.world_size}")
        if self.mixture_weights is not None and (self.tasks is None or len(self.tasks) != len(self.durations_s)):
            raise ValueError("mixture weights need the task of every utterance: pass tasks, one for each duration")

    def set_epoch(self, epoch: int) -> None:
        """Select the batches of ``epoch`` and start at the first one."""
        self.epoch = epoch
        self._start = 0

    def start(self, batch_index: int) -> None:
        """Start the next iteration at this rank's batch ``batch_index`` of the epoch, to resume a run."""
        if not 0 <= batch_index <= len(self):
            raise ValueError(f"cannot start at batch {batch_index}: epoch {self.epoch} has {len(self)} batches")
        self._start = batch_index

    def __len__(self) -> int:
        """Return the number of this rank's batches in the whole epoch; it differs between epochs."""
        return len(self._batches())

    def __iter__(self) -> Iterator[list[int]]:
        first, self._start = self._start, 0
        yield from self._batches()[first:]

    @property
    def smallest(self) -> int:
        """Return the smallest number of utterances of a batch of this rank, which shares its negatives with others."""
        return self.min_batch_size if self.world_size <= self.planned_for else 1

    @property
    def batches_per_round(self) -> int:
        """Return the number of batches of this rank that replace one of each of ``planned_for`` processes."""
        if self.planned_for == self.world_size:
            return 1
        from ossicle.data.dividing import batches_per_round  # only for a run with another number of processes

        return batches_per_round(self.planned_for, self.world_size, joined=self.min_batch_size > 1)

    def _batches(self) -> list[list[int]]:
        """Return the batches of this rank; in round k, rank r takes batch ``k * world_size + r`` of the plan."""
        if self._plan is None or self._plan[0] != self.epoch:
            self._plan = (self.epoch, self._own(self._make_plan()))
        return self._plan[1]

    def _own(self, batches: list[list[int]]) -> list[list[int]]:
        if self.planned_for == self.world_size:
            return batches[self.rank :: self.world_size]
        from ossicle.data.dividing import divide  # as above

        compares = self.min_batch_size > 1
        may_be_empty = self.may_be_empty and not compares
        ranks = self.rank, self.world_size
        return divide(batches, self.planned_for, *ranks, joined=compares, may_be_empty=may_be_empty)

    def _make_plan(self) -> list[list[int]]:
        random = np.random.default_rng((self.seed, self.epoch))
        batches = self._without_small(self._pack(self._indices(random)))
        # Whole rounds are shuffled, so that the batches of the ranks have similar lengths in each round
        whole = len(batches) - len(batches) % self.planned_for
        rounds = [batches[start : start + self.planned_for] for start in range(0, whole, self.planned_for)]
        tail = batches[whole:]
        if self.order == "duration":
            rounds = [rounds[index] for index in random.permutation(len(rounds))]
        if tail:
            tail = list(islice(cycle(tail + batches[:whole]), self.planned_for))
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
            return [int(index) for index in indices]
        chunk = CHUNK_BATCHES * self.batch_size
        chunks = [indices[start : start + chunk] for start in range(0, len(indices), chunk)]
        return [int(index) for part in chunks for index in part[np.argsort(durations_s[part], kind="stable")]]

    def _pack(self, indices: list[int]) -> list[list[int]]:
        """Split ``indices`` into batches of consecutive ones, each as large as the bounds allow."""
        batches: list[list[int]] = []
        longest_s, most, total = 0.0, 0, 0
        for index in indices:
            own = int(self.tokens[index]) if len(self.tokens) else 0
            longest_s, most, total = max(longest_s, self.durations_s[index]), max(most, own), total + own
            size = len(batches[-1]) + 1 if batches else math.inf
            tokens = size * most if self.pads_tokens and most else total
            if size > self.batch_size or size * longest_s > self.max_batch_s or tokens > self.max_batch_tokens:
                batches.append([])
                longest_s, most, total = self.durations_s[index], own, own
            batches[-1].append(index)
        return batches

    def _without_small(self, batches: list[list[int]]) -> list[list[int]]:
        kept = [batch for batch in batches if len(batch) >= self.min_batch_size]
        lost = sum(map(len, batches)) - sum(map(len, kept))
        if lost:
            fix = "raise data.max_batch_s or max_batch_tokens, or lower data.max_duration_s, if this is too many"
            logger.warning("epoch %d leaves out %d utterances in batches that are too small: %s", self.epoch, lost, fix)
        return kept


def mixture(
    tasks: Sequence[str | None], weights: Mapping[str, float], random: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Draw as many indices into ``tasks`` as there are, an utterance of task t in proportion to ``weights[t]``.

    ``{"asr": 1, "st": 2}`` draws each st utterance twice as often as each asr utterance. The utterances of a task are
    drawn equally often, except for the remainder of the division, which is drawn at random.

    Raises `ConfigError` for a weight below 0, a task that no utterance has, and weights that are all 0.
    """
    counts = Counter(tasks)
    unknown = weights.keys() - counts.keys()
    if unknown:
        raise ConfigError(
            f"data.mixture names tasks the data does not have: {sorted(unknown)}; its tasks are {list(counts)}"
        )
    names = list(counts)
    masses = np.array([counts[name] * (1.0 if name is None else weights.get(name, 1.0)) for name in names])
    if (masses < 0).any() or masses.sum() == 0:
        raise ConfigError(f"data.mixture is {dict(weights)}; weights must be 0 or above, and not all 0")
    draws = _apportion(masses, len(tasks))
    drawn = []
    for name, count in zip(names, draws, strict=True):
        members = np.flatnonzero([task == name for task in tasks])
        repeats, rest = divmod(count, len(members))
        drawn += [np.tile(members, repeats), random.choice(members, rest, replace=False)]
    return np.concatenate(drawn)


def _apportion(masses: npt.NDArray[Any], total: int) -> list[int]:
    """Return whole numbers in proportion to ``masses`` that add up to ``total``, by the largest-remainder method."""
    exact = masses / masses.sum() * total
    shares = np.floor(exact).astype(int)
    for index in np.argsort(shares - exact, kind="stable")[: total - shares.sum()]:
        shares[index] += 1
    return [int(share) for share in shares]
