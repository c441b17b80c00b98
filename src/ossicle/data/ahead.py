"""Read the audio of the next batch in threads, while the caller works on the one before it."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

Item = TypeVar("Item", covariant=True)
MOST_THREADS = 16


class Readable(Protocol[Item]):
    """A dataset whose items can be read in several threads at once, such as `ossicle.data.dataset.SpeechDataset`."""

    def __getitem__(self, index: int) -> Item:
        """Return an item."""
        ...


def read_ahead(
    dataset: Readable[Item], batches: Iterable[Sequence[int]], *, threads: int | None = None
) -> Iterator[tuple[Sequence[int], list[Item]]]:
    """Yield each of ``batches`` with its items. The batch after it is read meanwhile, and no further one.

    Args:
        dataset: the items.
        batches: indices of the items of each batch.
        threads: number of threads; None for one per core, and `MOST_THREADS` at most.

    An error of reading is raised when the batch is due.
    """
    reading: deque[tuple[Sequence[int], list[Future[Item]]]] = deque()
    pool = ThreadPoolExecutor(threads or min(MOST_THREADS, os.cpu_count() or 1))
    try:
        for indices in batches:
            reading.append((indices, [pool.submit(dataset.__getitem__, index) for index in indices]))
            if len(reading) == 2:
                yield _finished(*reading.popleft())
        while reading:
            yield _finished(*reading.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _finished(indices: Sequence[int], items: Iterable[Future[Item]]) -> tuple[Sequence[int], list[Item]]:
    return indices, [item.result() for item in items]
