"""Run long jobs side by side, each in a process of its own with one thread."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

from ossicle.workers import start_worker

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # two processes with one thread each are faster than one process with two threads
    "TOKENIZERS_PARALLELISM": "false",
    # By default glibc returns large blocks to the system after every step: half of the time of a small step.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
}
"""Environment variables of the worker processes. Values that the user has set take precedence."""
P = ParamSpec("P")
T = TypeVar("T")


def cores() -> int:
    """Return the number of CPU cores, which is the default number of processes."""
    return os.cpu_count() or 1


class InProcess(Executor):
    """Run each job in this process when it is submitted."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run ``fn`` and return a future that is done."""
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


@contextmanager
def process_pool(workers: int, *, ignore_interrupt: bool = False) -> Iterator[Executor]:
    """Yield a pool of ``workers`` spawned processes; with 0 workers, jobs run in this process.

    On exit the pool cancels jobs that have not started and waits for the others. Workers end when this process is
    killed.

    Args:
        workers: number of processes.
        ignore_interrupt: let workers ignore Ctrl-C. Jobs that save their state on Ctrl-C install their own handler.
    """
    if workers == 0:
        yield InProcess()
        return
    before = dict(os.environ)
    for name, value in ENVIRONMENT.items():  # libraries read them when a process starts
        os.environ.setdefault(name, value)
    # A forked copy of a process that has used torch's threads can hang, so the workers are spawned.
    context = multiprocessing.get_context("spawn")
    arguments = (os.getpid(), ignore_interrupt)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=start_worker, initargs=arguments)
    try:
        yield pool
    except KeyboardInterrupt:
        if ignore_interrupt:
            print("stopping: running jobs save their state first; the same command continues", file=sys.stderr)
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        for name in ENVIRONMENT.keys() - before.keys():
            del os.environ[name]


def run_side_by_side(
    jobs: Mapping[str, Callable[[], object]], *, processes: int | None = None, logs: Path | None = None
) -> None:
    """Run all ``jobs`` and return when they are done. The first error stops jobs that have not started.

    Args:
        jobs: functions without arguments that can be pickled, by name.
        processes: number of processes; None for one per core, 0 to run the jobs in this process.
        logs: folder for the output of each job, in ``NAME.log``. By default, and in this process, output is shown.
    """
    workers = 0 if processes == 0 else min(processes or cores(), len(jobs))
    with process_pool(workers) as pool:
        futures = [
            pool.submit(job if workers == 0 else partial(_run_in_worker, job, logs and logs / f"{name}.log"))
            for name, job in jobs.items()
        ]
        for future in as_completed(futures):
            future.result()


def _run_in_worker(job: Callable[[], object], log: Path | None) -> None:
    import torch

    torch.set_num_threads(1)
    if log is None:
        job()
        return
    with log.open("a", encoding="utf-8") as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        job()
