"""Several chains at once, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor

from ossicle_lab.demo.chain import MALLOC, Chain, ChainResult, run_chain
from ossicle_lab.demo.watch import Watch

ORPHAN_CHECK_S = 1.0


def run_side_by_side(chains: Sequence[Chain], processes: int | None = None) -> list[ChainResult]:
    """Run ``chains``, longest first if the caller can tell; the first error stops all, and what is done stays.

    ``processes``: how many at a time; ``None``: one per core; 0: in this process, without progress.
    """
    if processes == 0:
        return [run_chain(chain, 1) for chain in chains]
    for name, value in MALLOC.items():  # glibc reads these when a process starts
        os.environ.setdefault(name, value)
    cores = os.cpu_count() or 1
    workers = min(processes or cores, len(chains))
    # Spawned: a forked copy of a process that has used torch's threads can hang.
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(workers, mp_context=context, initializer=end_with, initargs=(os.getpid(),)) as pool,
        Watch(chains) as watch,
    ):
        futures: list[Future[ChainResult]] = [pool.submit(run_chain, c, max(1, cores // workers)) for c in chains]
        watch.until_done(futures)
        return [future.result() for future in futures]


def end_with(parent: int) -> None:
    """Let this process end when ``parent`` has been killed, which takes no children along."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(ORPHAN_CHECK_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
