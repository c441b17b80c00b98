"""Plan the batches of the development data: every utterance once, in as many batches on every process."""

from __future__ import annotations

import numpy as np

from ossicle.data.sampler import BatchSampler
from ossicle.errors import ConfigError


class DevSampler(BatchSampler):
    """Plan batches that have every utterance exactly once, the same number of batches on every process.

    A batch that is too small joins another one, and large ones are divided until the processes have equally many. If
    that is impossible, because there are fewer utterances than processes, some processes have an empty batch.
    """

    may_be_empty = True

    def _make_plan(self) -> list[list[int]]:
        random = np.random.default_rng((self.seed, self.epoch))
        return even(self._pack(self._indices(random)), smallest=self.min_batch_size, ranks=self.planned_for)


def even(batches: list[list[int]], *, smallest: int, ranks: int) -> list[list[int]]:
    """Return the same items in batches of at least ``smallest`` items; the number of batches divides by ``ranks``."""
    joined: list[list[int]] = []
    for batch in batches:
        if joined and min(len(batch), len(joined[-1])) < smallest:
            both = joined.pop() + batch
            middle = (len(both) + 1) // 2
            joined += [both[:middle], both[middle:]] if len(both) >= 2 * smallest else [both]
        else:
            joined.append(list(batch))
    while len(joined) % ranks:
        largest = max(range(len(joined)), key=lambda i: len(joined[i]))
        batch = joined[largest]
        if len(batch) < 2 * smallest:
            break
        middle = (len(batch) + 1) // 2
        joined[largest : largest + 1] = [batch[:middle], batch[middle:]]
    if len(joined) % ranks:
        items = [item for batch in joined for item in batch]
        most = len(items) // smallest
        count = most // ranks * ranks or max(1, most)
        joined = [items[i * len(items) // count : (i + 1) * len(items) // count] for i in range(count)]
    return joined + [[] for _ in range(-len(joined) % ranks)]


def check_size(sampler: BatchSampler, skipped: str) -> None:
    """Raise `ConfigError`, with the report ``skipped``, if the processes cannot all have a large enough batch."""
    count, ranks, smallest = len(sampler.durations_s), sampler.planned_for, sampler.min_batch_size
    if smallest > 1 and count < smallest * ranks:
        place = f" in each of {ranks} processes" if ranks > 1 else ""
        raise ConfigError(
            f"data.dev has {count} usable utterance{'s' * (count != 1)}, but the objective compares utterances with "
            f"each other and needs {smallest}{place}: add some, or leave data.dev out. {skipped}"
        )
