"""What a run says about itself: progress bar, ``metrics.jsonl``, TensorBoard."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

METRICS_FILE = "metrics.jsonl"
PARTS_SHOWN = 3


class Tracker(AbstractContextManager["Tracker"]):
    """Writes every logged step to disk and shows it: a bar on a terminal, a line elsewhere.

    ``enabled=False`` (all processes but the first) makes every call do nothing.
    """

    def __init__(self, folder: Path, *, steps: int, tensorboard: bool, enabled: bool = True) -> None:
        self.folder, self.steps, self.enabled = folder, steps, enabled
        self.console = Console(stderr=True, quiet=not enabled)
        self.started_s = time.perf_counter()
        self._metrics = (folder / METRICS_FILE).open("a") if enabled else None
        self._writer = _tensorboard(folder) if tensorboard and enabled else None
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not (enabled and self.console.is_terminal),
        )
        self._task: TaskID | None = None
        self._first_step = 0

    def __enter__(self) -> Tracker:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if self._metrics is not None:
            self._metrics.close()
        if self._writer is not None:
            self._writer.close()

    def advance(self, step: int) -> None:
        """Move the bar."""
        if self._task is None:
            self._first_step, self.started_s = step, time.perf_counter()
            self._task = self._bar.add_task(self.folder.name, total=self.steps, completed=step, status="")
        self._bar.update(self._task, completed=step)

    def log(self, step: int, values: dict[str, float], *, split: str = "train") -> None:
        """Record ``values`` of ``step``; the loss, its parts, speed and padding are shown."""
        if not self.enabled:
            return
        record = {"step": step, "split": split, "time_s": round(time.perf_counter() - self.started_s, 2), **values}
        if self._metrics is not None:
            self._metrics.write(json.dumps(record) + "\n")
            self._metrics.flush()
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(f"{split}/{name}", value, step)
        status = describe(values)
        if self._task is not None and split == "train":
            self._bar.update(self._task, status=status)
        if split != "train" or not self.console.is_terminal:
            self.console.print(
                f"{self.folder.name} {split} step {step}/{self.steps}  {status}{self._eta(step)}", soft_wrap=True
            )

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(text, highlight=False, soft_wrap=True)

    def _eta(self, step: int) -> str:
        """Time left, for the lines that replace the bar."""
        done = step - self._first_step
        if done <= 0 or step >= self.steps:
            return ""
        left_s = (time.perf_counter() - self.started_s) / done * (self.steps - step)
        return f"  ETA {int(left_s) // 60}:{int(left_s) % 60:02d}"


def bar() -> Progress:
    """A bar for one loop, on a terminal: `with bar() as progress: for x in progress.track(xs): ...`."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def describe(values: dict[str, float]) -> str:
    """One line: loss, up to three of its parts, retrieval, seconds of audio per second, padding."""
    shown = [f"loss {values['loss']:.3f}"] if "loss" in values else []
    parts = [(name.removeprefix("part/"), value) for name, value in values.items() if name.startswith("part/")]
    if len(parts) > 1:
        shown += [f"{name} {value:.3f}" for name, value in spread(parts, PARTS_SHOWN)]
    if "r_at_1" in values:
        shown.append(f"R@1 {values['r_at_1']:.1f}%")
    if "audio_s_per_s" in values:
        shown.append(f"{values['audio_s_per_s']:.0f} audio-s/s")
    if "padding" in values:
        shown.append(f"padding {values['padding']:.0%}")
    return "  ".join(shown)


def spread(items: list[Any], count: int) -> list[Any]:
    """``count`` items from first to last, evenly: the layers of a loss are many."""
    if len(items) <= count:
        return items
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a ``metrics.jsonl``; of a step that a resumed run repeated, the last one."""
    records = (json.loads(line) for line in path.read_text().splitlines() if line)
    return list({(record["split"], record["step"]): record for record in records}.values())


def mean(records: Iterable[dict[str, float]]) -> dict[str, float]:
    """Mean of each value over ``records``."""
    sums: dict[str, list[float]] = {}
    for record in records:
        for name, value in record.items():
            sums.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in sums.items()}


def _tensorboard(folder: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"))


def write_provenance(folder: Path, objective: object = None) -> None:
    """Write ``versions.json``: `provenance`, and an objective that was passed in."""
    record = {**provenance(), "objective": None if objective is None else repr(objective)}
    (folder / "versions.json").write_text(json.dumps(record, indent=2) + "\n")


def provenance() -> dict[str, Any]:
    """When, by which command, on what, with which versions and commit."""
    packages = ("ossicle", "torch", "transformers", "accelerate", "safetensors", "soundfile", "soxr", "numpy")
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version(name) for name in packages},
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The commit checked out here, with ``-dirty`` for uncommitted changes; None outside a git checkout."""
    try:
        found = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
