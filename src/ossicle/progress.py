"""Show the progress of a loop: a bar on a terminal, a line every half minute elsewhere, with throughput and ETA."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sized
from types import TracebackType
from typing import Any, Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

LINE_EVERY_S = 30.0
T = TypeVar("T")


class Progress:
    """Show how far a loop has come.

    Args:
        title: What is being done.
        total: The amount of work in ``unit``; None if it is unknown.
        unit: What is counted, such as ``"utterances"``; it is shown with the throughput.
        enabled: False shows nothing and prints nothing, as in every process but the first.
        lines: False prints no lines of its own where there is no terminal; the caller prints them with `say`.
    """

    def __init__(
        self, title: str, total: float | None, *, unit: str = "", enabled: bool = True, lines: bool = True
    ) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.console = Console(stderr=True, quiet=not enabled)
        self.completed = 0.0
        self._start = (time.perf_counter(), 0.0)  # time and amount from which the throughput is measured
        self._lines = lines and not self.console.is_terminal
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
        if not self._bar.disable:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._bar.disable:  # older releases of rich print an empty line even then
            self._bar.stop()

    @property
    def is_bar(self) -> bool:
        """True on a terminal, where a bar is shown instead of lines."""
        return self.console.is_terminal

    def begin_at(self, completed: float) -> None:
        """Count ``completed`` as done before this call: it is shown, but left out of the throughput."""
        self.completed = completed
        self._start = (time.perf_counter(), completed)
        self._show()

    def advance(self, amount: float = 1, *, status: str | None = None) -> None:
        """Count ``amount`` more as done; ``status`` as in `update`."""
        self.update(self.completed + amount, status=status)

    def update(self, completed: float, *, status: str | None = None) -> None:
        """Set the amount that is done and the text at the end of the line; None keeps the bar's text."""
        self.completed = completed
        self._show(status)
        if self._lines and time.perf_counter() - self._last_line_s >= LINE_EVERY_S:
            self._last_line_s = time.perf_counter()
            self.say("  ".join(filter(None, [self.title, self.count(), status, self.eta()])))

    def say(self, text: str) -> None:
        """Print ``text`` on a line of its own, above the bar."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def count(self) -> str:
        """Return the amount that is done and the throughput, such as ``120/400 utterances, 33/s``."""
        of_total = "" if self.total is None else f"/{self.total:.0f}"
        rate = self.rate()
        shown = f", {rate:.0f}/s" if rate >= 10 else f", {rate:.2g}/s" if rate > 0 else ""
        return f"{self.completed:.0f}{of_total} {self.unit}".rstrip() + shown

    def rate(self) -> float:
        """Return the throughput since `begin_at` (or the start), in units per second."""
        started_s, first = self._start
        return (self.completed - first) / max(time.perf_counter() - started_s, 1e-9)

    def eta(self) -> str:
        """Return the time left, such as ``ETA 3:07``; empty if it is unknown or nothing is left."""
        rate = self.rate()
        if self.total is None or rate <= 0 or self.completed >= self.total:
            return ""
        minutes, seconds = divmod(int((self.total - self.completed) / rate), 60)
        hours, minutes = divmod(minutes, 60)
        return f"ETA {hours}:{minutes:02d}:{seconds:02d}" if hours else f"ETA {minutes}:{seconds:02d}"

    def _show(self, status: str | None = None) -> None:
        fields: dict[str, Any] = {"count": self.count()}
        if status is not None:
            fields["status"] = status
        self._bar.update(self._task, completed=self.completed, **fields)


def track(items: Iterable[T], title: str, *, total: float | None = None, unit: str = "") -> Iterator[T]:
    """Yield ``items`` and show the progress; ``total`` is their number, by default their length if they have one."""
    size = total if total is not None else len(items) if isinstance(items, Sized) else None
    with Progress(title, size, unit=unit) as progress:
        for item in items:
            yield item
            progress.advance()
