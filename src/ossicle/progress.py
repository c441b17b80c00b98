"""The one progress display: a bar on a terminal, a line every half minute elsewhere, both with throughput and ETA."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

LINE_EVERY_S = 30.0
T = TypeVar("T")


class Progress:
    """Show how far a loop is.

    Args:
        title: what is being done.
        total: the amount of work, in ``unit``; None where it is unknown.
        unit: what is counted, e.g. ``"utterances"``; shown with the throughput.
        enabled: False shows nothing, as in every process but the first.
    """

    def __init__(self, title: str, total: float | None, *, unit: str = "", enabled: bool = True) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.console = Console(stderr=True, quiet=not enabled)
        self.completed = 0.0
        self._start = (time.perf_counter(), 0.0)  # when and where the measured part began
        self._last_line_s = time.perf_counter()
        self._bar = Bar(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[count]}"),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not (enabled and self.console.is_terminal),
        )
        self._task = self._bar.add_task(title, total=total, count="", status="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin_at(self, completed: float) -> None:
        """Say that ``completed`` was done before: it counts as done, but not for the throughput."""
        self.completed = completed
        self._start = (time.perf_counter(), completed)
        self._show()

    def advance(self, amount: float = 1, *, status: str | None = None) -> None:
        """Count ``amount`` more as done."""
        self.update(self.completed + amount, status=status)

    def update(self, completed: float, *, status: str | None = None) -> None:
        """Set how much is done, and the text at the end of the line."""
        self.completed = completed
        self._show(status)
        if not self.console.is_terminal and time.perf_counter() - self._last_line_s >= LINE_EVERY_S:
            self._last_line_s = time.perf_counter()
            self.say("  ".join(filter(None, [self.title, self.count(), status, self.eta()])))

    def say(self, text: str) -> None:
        """Print a line of its own, above the bar."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def count(self) -> str:
        """Return how much is done and the throughput, e.g. ``120/400 utterances, 33/s``."""
        of_total = "" if self.total is None else f"/{self.total:.0f}"
        rate = self.rate()
        shown = f", {rate:.0f}/s" if rate >= 10 else f", {rate:.2g}/s" if rate > 0 else ""
        return f"{self.completed:.0f}{of_total} {self.unit}".rstrip() + shown

    def rate(self) -> float:
        """Return the throughput of this call, in units per second."""
        started_s, first = self._start
        return (self.completed - first) / max(time.perf_counter() - started_s, 1e-9)

    def eta(self) -> str:
        """Return the time left, e.g. ``ETA 3:07``; empty while it is unknown."""
        rate = self.rate()
        if self.total is None or rate <= 0 or self.completed >= self.total:
            return ""
        minutes, seconds = divmod(int((self.total - self.completed) / rate), 60)
        hours, minutes = divmod(minutes, 60)
        return f"ETA {hours}:{minutes:02d}:{seconds:02d}" if hours else f"ETA {minutes}:{seconds:02d}"

    def _show(self, status: str | None = None) -> None:
        fields = {"count": self.count()} if status is None else {"count": self.count(), "status": status}
        self._bar.update(self._task, completed=self.completed, **fields)


def track(items: Iterable[T], title: str, *, total: float | None = None, unit: str = "") -> Iterator[T]:
    """Yield ``items`` and show the progress; ``total`` is their number where they have no length."""
    size = total if total is not None else len(items) if hasattr(items, "__len__") else None
    with Progress(title, size, unit=unit) as progress:
        for item in items:
            yield item
            progress.advance()
