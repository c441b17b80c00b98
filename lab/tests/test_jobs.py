"""Check that jobs run side by side, log to their own files, and that the first error ends the run."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest

from ossicle_lab.jobs import process_pool, run_side_by_side


def note(folder: Path, name: str) -> None:
    print(f"this is {name}")
    (folder / name).write_text(f"{os.getpid()} {os.environ.get('OMP_NUM_THREADS')}")


def fail() -> None:
    raise ValueError("no such corpus")


def test_jobs_run_in_processes_of_one_thread_with_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    jobs = {name: partial(note, tmp_path, name) for name in ("a", "b")}
    run_side_by_side(jobs, processes=2, logs=tmp_path)
    processes, threads = zip(*((tmp_path / name).read_text().split() for name in jobs), strict=True)
    assert str(os.getpid()) not in processes
    assert set(threads) == {"1"}
    assert (tmp_path / "a.log").read_text() == "this is a\n"


def test_jobs_run_in_this_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_side_by_side({"a": partial(note, tmp_path, "a")}, processes=0, logs=tmp_path)
    assert (tmp_path / "a").read_text().startswith(f"{os.getpid()} ")
    assert capsys.readouterr().out == "this is a\n"


def test_the_error_of_a_job_is_raised() -> None:
    for processes in (0, 1):
        with pytest.raises(ValueError, match="no such corpus"):
            run_side_by_side({"a": fail}, processes=processes)


def test_errors_in_this_process_wait_in_the_future() -> None:
    with process_pool(0) as pool:
        assert isinstance(pool.submit(fail).exception(), ValueError)
