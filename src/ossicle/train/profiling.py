"""Record a few steps of a training run with torch.profiler (``train.profile``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from ossicle.errors import TrainingError
from ossicle.train.recipe import Config

FOLDER, TRACE_FILE, TABLE_FILE = "profile", "trace.json.gz", "operators.txt"
"""Folder in the run's folder, and the files in it: a trace for ``chrome://tracing`` or Perfetto, and a table."""
WAIT, WARMUP, ACTIVE = 5, 2, 3
"""Numbers of steps that are left out, that are run with the profiler on but not kept, and that are recorded."""
ROWS = 40
"""Number of operators in the table."""


@contextmanager
def profiled(config: Config, steps: int) -> Iterator[Callable[[], None]]:
    """Yield a function that the loop calls after each of its ``steps`` optimiser steps.

    With ``train.profile`` the first process records the steps of `phases` and writes the trace and the table of the
    largest operators. A run that is interrupted while it records writes the steps until then. In all other processes,
    and without ``train.profile``, the function does nothing and no profiler exists. Raises `TrainingError` if the files
    cannot be written.
    """
    if not (config.train.profile and PartialState().is_main_process):
        yield _nothing
        return
    from torch import profiler

    def write(recorded: Any) -> None:
        _write(recorded, config.folder / FOLDER)

    wait, warmup, active = phases(steps)
    schedule = profiler.schedule(wait=wait, warmup=warmup, active=active, repeat=1)
    with profiler.profile(schedule=schedule, on_trace_ready=write) as recording:
        yield recording.step


def phases(steps: int) -> tuple[int, int, int]:
    """Return the numbers of steps to leave out, to warm up with and to record, in a run of ``steps`` steps.

    They are `WAIT`, `WARMUP` and `ACTIVE`. A run that is shorter than their sum leaves out fewer steps first, and then
    records fewer. Its last step is recorded.
    """
    steps = max(1, steps)
    warmup = min(WARMUP, steps - 1)
    active = min(ACTIVE, steps - warmup)
    return min(WAIT, steps - warmup - active), warmup, active


def _nothing() -> None:
    """Do nothing after a step that is not recorded."""


def _write(recorded: Any, folder: Path) -> None:
    """Write the trace and the table of ``recorded``, a torch.profiler.profile, to ``folder``."""
    device = "device" if torch.accelerator.is_available() and PartialState().device.type != "cpu" else "cpu"
    table = recorded.key_averages().table(sort_by=f"self_{device}_time_total", row_limit=ROWS)
    try:
        folder.mkdir(exist_ok=True)
        recorded.export_chrome_trace(str(folder / TRACE_FILE))
        (folder / TABLE_FILE).write_text(table, encoding="utf-8")
    except OSError as error:
        raise TrainingError(
            f"{folder}: the profile cannot be written ({error}): check the folder, or set train.profile=false"
        ) from error
