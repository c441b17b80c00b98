"""`ossicle study`: do what is missing, one process per core, until nothing is left; then aggregate.

The loop knows nothing of the order of a study: it asks `Plan.jobs` what can be described now, runs what is ready, and
asks again. A killed study therefore continues as one that was never killed.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from ossicle_lab.demo.chain import MALLOC
from ossicle_lab.demo.side_by_side import end_with
from ossicle_lab.study.config import StudyConfig, to_dict
from ossicle_lab.study.data import prepare_data
from ossicle_lab.study.job import Job, StudyError, write_json
from ossicle_lab.study.plan import Plan, is_ready
from ossicle_lab.study.results import collect
from ossicle_lab.study.watch import Watch, cores
from ossicle_lab.study.work import run_job

STUDY_FILE, RESULTS = "study.yaml", "results.json"
REFRESH_S = 1.0
CHANGES_SHOWN = 5


def run_study(config: StudyConfig, *, processes: int | None = None, rerun_changed: bool = False) -> dict[str, Any]:
    """Run or continue a study; returns what ``results.json`` holds.

    ``processes``: how many at a time; None: one per core; 0: in this process. ``rerun_changed`` repeats what was done
    with other settings, which is refused otherwise; training that they do not touch stays. Raises `StudyError`, also
    for jobs that failed: the others are done by then, and ``results.json`` has them.
    """
    console = Console(stderr=True)
    config.folder.mkdir(parents=True, exist_ok=True)
    with _alone(config.folder):
        data = prepare_data(config, console)
        plan = Plan(config, data)
        (config.folder / STUDY_FILE).write_text(yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True))
        workers = cores() if processes is None else processes
        with Watch(plan, console, max(workers, 1)) as watch:
            failed = _work_off(plan, watch, workers, rerun_changed=rerun_changed)
        record = collect(plan)
        write_json(config.folder / RESULTS, record)
    if failed:
        raise StudyError("\n".join([f"{len(failed)} jobs failed; the same command tries them again:", *failed]))
    return record


def _work_off(plan: Plan, watch: Watch, workers: int, *, rerun_changed: bool) -> list[str]:
    """Run all jobs; returns the messages of those that failed."""
    checked: set[Path] = set()
    running: dict[Future[float], Job] = {}
    failed: dict[Path, str] = {}
    with _pool(workers) as pool:
        while True:
            jobs = plan.jobs()
            if _clear_changed(jobs, checked, rerun=rerun_changed):
                continue
            busy = {job.folder for job in running.values()}
            ready = [j for j in jobs if not j.is_done() and j.folder not in busy | failed.keys() and is_ready(j)]
            for job in ready[: max(workers, 1) - len(running)]:
                job.prepare()
                running[pool.submit(run_job, job)] = job
            watch.update(jobs, running.values(), failed)
            if not running:
                return list(failed.values())
            done: set[Future[float]] = set()
            while not done:
                done, _ = wait(running, timeout=REFRESH_S, return_when=FIRST_COMPLETED)
            for future in done:
                _note(future, running.pop(future), failed, watch)


def _note(future: Future[float], job: Job, failed: dict[Path, str], watch: Watch) -> None:
    try:
        watch.say_done(job, future.result())
    except BrokenProcessPool as error:
        raise StudyError(f"{job.label}: its process was killed (out of memory?); the same command continues") from error
    except RuntimeError as error:
        failed[job.folder] = str(error)


def _clear_changed(jobs: list[Job], checked: set[Path], *, rerun: bool) -> bool:
    """Deletes records of what was done with other settings, or raises `StudyError`. True if one was deleted."""
    changed: dict[Path, str] = {}
    for job in jobs:
        if job.folder not in checked and is_ready(job) and job.is_done():
            if changes := job.changes():
                changed[job.record_path] = f"{job.folder}: {'; '.join(changes)}"
            else:
                checked.add(job.folder)
    if changed and not rerun:
        shown = [*changed.values()][:CHANGES_SHOWN]
        more = [f"... and {len(changed) - len(shown)} more"] if len(changed) > len(shown) else []
        head = "these were done with other settings; --rerun-changed repeats just them, name=... keeps both:"
        raise StudyError("\n".join([head, *shown, *more]))
    for record in changed:
        record.unlink()
    return bool(changed)


class _Here:
    """Runs jobs in this process, one at a time, in place of a pool."""

    def submit(self, function: Any, job: Job) -> Future[float]:
        future: Future[float] = Future()
        try:
            future.set_result(function(job))
        except RuntimeError as error:
            future.set_exception(error)
        return future


@contextmanager
def _pool(workers: int) -> Iterator[Any]:
    if workers == 0:
        yield _Here()
        return
    for name, value in {**MALLOC, "OMP_NUM_THREADS": "1"}.items():  # read when a process starts
        os.environ.setdefault(name, value)
    # Spawned: a forked copy of a process that has used torch's threads can hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(os.getpid(),))
    try:
        yield pool
    except KeyboardInterrupt:
        print("stopping: training is saved, decoding ends first; the same command continues", file=sys.stderr)
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin(parent: int) -> None:
    """Ctrl-C reaches every process: training handles it (`ossicle.train.loop.Interruptible`), all else leaves it alone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with(parent)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which goes with the process however it ends."""
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StudyError(f"{folder}: another process is running this study; wait for it or stop it") from error
        yield
