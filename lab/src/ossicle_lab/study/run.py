"""Run a study (`ossicle study`): do all missing jobs, one process per core, then aggregate the results.

The loop does not store the state of a study. It asks `Plan.jobs` which jobs can be described now, runs those that are
ready, and asks again. A killed study therefore continues like one that was never killed.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from rich.console import Console

from ossicle.files import write_json, write_text
from ossicle_lab.jobs import cores, process_pool
from ossicle_lab.study.config import StudyConfig, to_dict
from ossicle_lab.study.data import find_data, prepare_data
from ossicle_lab.study.job import Job, StudyError
from ossicle_lab.study.plan import Plan, is_ready
from ossicle_lab.study.results import collect
from ossicle_lab.study.watch import Watch
from ossicle_lab.study.work import run_job

STUDY_FILE, RESULTS = "study.yaml", "results.json"
REFRESH_S = 1.0
CHANGES_SHOWN = 5


def summarise(config: StudyConfig) -> dict[str, Any]:
    """Return what ``results.json`` holds for the cells that are done, without running anything, and write the file.

    A study that was stopped, or is still running, has such results too. Raises `StudyError` if no cell is done.
    """
    plan = Plan(config, find_data(config))
    record = collect(plan)
    if not record["rows"]:
        raise StudyError(f"{config.folder}: no cell is done yet; run the study first, without --summary")
    write_json(config.folder / RESULTS, record)
    return record


def run_study(config: StudyConfig, *, processes: int | None = None, rerun_changed: bool = False) -> dict[str, Any]:
    """Run or continue a study and return what ``results.json`` holds.

    Args:
        config: the study.
        processes: number of processes; None for one per core, 0 to run the jobs in this process.
        rerun_changed: repeat jobs that were done with other settings. Training that the change does not affect stays.

    Raises:
        StudyError: jobs failed, after all others are done and ``results.json`` is written; or jobs were done with other
            settings and ``rerun_changed`` is False; or another process runs this study.
    """
    console = Console(stderr=True)
    config.folder.mkdir(parents=True, exist_ok=True)
    with _locked(config.folder):
        data = prepare_data(config, console)
        plan = Plan(config, data)
        write_text(config.folder / STUDY_FILE, yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True))
        workers = cores() if processes is None else processes
        with Watch(plan, console, max(workers, 1)) as watch:
            failed = _work_off(plan, watch, workers, rerun_changed=rerun_changed)
        record = collect(plan)
        write_json(config.folder / RESULTS, record)
    if failed:
        raise StudyError("\n".join([f"{len(failed)} jobs failed; the same command tries them again:", *failed]))
    return record


def _work_off(plan: Plan, watch: Watch, workers: int, *, rerun_changed: bool) -> list[str]:
    """Run all jobs and return the messages of those that failed."""
    checked: set[Path] = set()
    running: dict[Future[float], Job] = {}
    failed: dict[Path, str] = {}
    with process_pool(workers, ignore_interrupt=True) as pool:
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
                watch.tick()
            for future in done:
                _note(future, running.pop(future), failed, watch)


def _note(future: Future[float], job: Job, failed: dict[Path, str], watch: Watch) -> None:
    try:
        watch.say_done(job, future.result())
    except BrokenProcessPool as error:
        raise StudyError(f"{job.label}: its process was killed (out of memory?); the same command continues") from error
    except StudyError as error:
        failed[job.folder] = str(error)


def _clear_changed(jobs: list[Job], checked: set[Path], *, rerun: bool) -> bool:
    """Delete the records of jobs that were done with other settings; return True if there were any.

    Raises `StudyError` instead if ``rerun`` is False. ``checked`` collects the folders that need no further check.
    """
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
        head = "these were done with other settings; --rerun-changed repeats them, name=... starts another study:"
        raise StudyError("\n".join([head, *shown, *more]))
    for record in changed:
        record.unlink()
    return bool(changed)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of the folder. The system releases it when the process ends, also after a kill."""
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise StudyError(f"{folder}: another process is running this study; wait for it or stop it") from error
    try:
        yield
    finally:
        lock.release()
