"""Record and show the metrics of a run: ``metrics.jsonl``, TensorBoard and the progress display."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from ossicle.files import write_text
from ossicle.progress import Progress

METRICS_FILE, EVENTS = "metrics.jsonl", "tensorboard"
PARTS_SHOWN = 3
T = TypeVar("T")


class Tracker(AbstractContextManager["Tracker"]):
    """Write every logged step to disk and show it, as a bar on a terminal and as a line elsewhere.

    Args:
        folder: The run's folder.
        steps: Number of optimiser steps of the whole run.
        tensorboard: Write TensorBoard events to ``folder/tensorboard``.
        start: Number of steps that were taken before, in a resumed run. Records of later steps are deleted.
        enabled: False turns every call into a no-op, as in every process but the first.
    """

    def __init__(self, folder: Path, *, steps: int, tensorboard: bool, start: int = 0, enabled: bool = True) -> None:
        self.folder, self.steps, self.enabled = folder, steps, enabled
        self.started_s = time.perf_counter()
        if enabled:
            _delete_after(start, folder)
        self._metrics = (folder / METRICS_FILE).open("a", encoding="utf-8") if enabled else None
        self._writer = _tensorboard(folder, start) if tensorboard and enabled else None
        self._progress = Progress(folder.name, steps, unit="steps", enabled=enabled, lines=False)
        self._has_begun = False

    def __enter__(self) -> Tracker:
        self._progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.__exit__(kind, error, trace)
        if self._metrics is not None:
            self._metrics.close()
        if self._writer is not None:
            self._writer.close()

    def advance(self, step: int) -> None:
        """Set the number of completed steps. The first call sets where the time and the throughput start."""
        if not self._has_begun:
            self._has_begun, self.started_s = True, time.perf_counter()
            self._progress.begin_at(step)
        self._progress.update(step)

    def log(self, step: int, values: dict[str, float], *, split: str = "train") -> None:
        """Record ``values`` of ``step``, and show the loss, its parts, the throughput and the padding.

        A value that is not finite is null in ``metrics.jsonl``, because JSON has no NaN.
        """
        if not self.enabled:
            return
        self.record(step, split, {name: value if math.isfinite(value) else None for name, value in values.items()})
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(f"{split}/{name}", value, step)
        status = describe(values)
        self._progress.update(step, status=status if split == "train" else None)
        if split != "train" or not self._progress.is_bar:
            place = f"{self.folder.name} {split} step {step}/{self.steps}"
            self.say("  ".join(filter(None, [place, status, self._progress.eta()])))

    def record(self, step: int, split: str, values: dict[str, Any]) -> None:
        """Append a record with ``values``, which JSON has to be able to express, to ``metrics.jsonl``."""
        if self._metrics is not None:
            time_s = round(time.perf_counter() - self.started_s, 2)
            record = {"step": step, "split": split, "time_s": time_s, **values}
            self._metrics.write(json.dumps(record, allow_nan=False) + "\n")
            self._metrics.flush()

    def say(self, text: str) -> None:
        """Print ``text`` on a line of its own, above the bar."""
        self._progress.say(text)


def describe(values: dict[str, float]) -> str:
    """Return one line with the loss, up to three of its parts, retrieval, seconds of audio per second and padding."""
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


def spread(items: Sequence[T], count: int) -> list[T]:
    """Return ``count`` items at even distances from the first to the last, or all items if there are fewer."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the records of a ``metrics.jsonl``; of a step that a resumed run repeated, only the last record.

    A line that a crash has cut off is left out.
    """
    return list({(record["split"], record["step"]): record for record in _records(path)}.values())


def _records(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and isinstance(record.get("step"), int) and "split" in record:
                yield record


def _delete_after(step: int, folder: Path) -> None:
    """Delete what an earlier start of the run recorded after ``step``; everything if that is 0."""
    path = folder / METRICS_FILE
    if path.is_file():
        kept = [record for record in _records(path) if 0 < record["step"] <= step]
        write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
    if step == 0:
        shutil.rmtree(folder / EVENTS, ignore_errors=True)


def mean(records: Iterable[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each value over ``records``."""
    sums: dict[str, list[float]] = {}
    for record in records:
        for name, value in record.items():
            sums.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in sums.items()}


def _tensorboard(folder: Path, start: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    writer: Any = SummaryWriter  # it has no types
    return writer(str(folder / EVENTS), purge_step=start + 1)
