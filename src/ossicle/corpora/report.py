"""What a preparation did, and the progress bar while it does it."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from ossicle.corpora.items import Dropped

REPORT_NAME = "prepare.json"


@dataclass
class Count:
    """One manifest."""

    lines: int = 0
    recordings: int = 0
    """Stretches of speech: fewer than lines where several ask about the same."""
    speech_s: float = 0.0
    """Of the recordings, each counted once."""


@dataclass
class Reason:
    """Why something was left out."""

    count: int = 0
    first: str = ""
    """The first such thing: its id, and what was wrong with it."""


@dataclass
class Report:
    """Counts of a preparation, printed and kept in ``prepare.json``."""

    about: dict[str, Any]
    manifests: dict[str, Count] = field(default_factory=dict)
    dropped: dict[str, Reason] = field(default_factory=dict)
    already_done: bool = False
    """An earlier call did it all."""

    def count(self, name: str, speech_s: float | None) -> None:
        """One more line of a manifest; ``None``: about a recording that is counted already."""
        count = self.manifests.setdefault(name, Count())
        count.lines += 1
        if speech_s is not None:
            count.recordings += 1
            count.speech_s += speech_s

    def drop(self, dropped: Dropped) -> None:
        """One more that is left out."""
        reason = self.dropped.setdefault(dropped.reason, Reason())
        reason.count += 1
        reason.first = reason.first or f"{dropped.id}{': ' if dropped.detail else ''}{dropped.detail}"

    def first_reason(self) -> str:
        """The most frequent reason in words."""
        if not self.dropped:
            return "the source holds nothing that these options choose"
        name, reason = max(self.dropped.items(), key=lambda item: item[1].count)
        return f"{name} ({reason.count} times; first {reason.first})"

    def save(self, path: Path) -> None:
        """Write it; the file appears only when it is complete."""
        content = asdict(self)
        del content["already_done"]
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """What `save` wrote."""
        content = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            content["about"],
            {name: Count(**count) for name, count in content["manifests"].items()},
            {name: Reason(**reason) for name, reason in content["dropped"].items()},
            already_done=True,
        )

    def print(self, out: Path, console: Console | None = None) -> None:
        """A table of the manifests, then what was left out and why."""
        console = console or Console()
        table = Table(f"manifests in {out}", box=box.SIMPLE)
        for column in ("lines", "recordings", "hours"):
            table.add_column(column, justify="right")
        for name, count in sorted(self.manifests.items()):
            hours = f"{count.speech_s / 3600:.2f}"
            table.add_row(f"{name}.jsonl", str(count.lines), str(count.recordings), hours)
        if self.already_done:
            text = f"{out}: was done before, nothing to do (without {REPORT_NAME} it would be done again)"
            console.print(text, highlight=False, markup=False, soft_wrap=True)
        console.print(table)
        for name, reason in sorted(self.dropped.items(), key=lambda item: -item[1].count):
            text = f"left out, {name}: {reason.count} (first: {reason.first})"
            console.print(text, highlight=False, markup=False, soft_wrap=True)
        if self.dropped:
            console.print(f"all of them: {out / 'dropped.jsonl'}", highlight=False, markup=False, soft_wrap=True)


class Bar:
    """Share of the index done, recordings, hours of speech, throughput and time left; only on a terminal."""

    def __init__(self, title: str, *, show: bool | None = None) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[done]} recordings, {task.fields[hours]:.2f} h, {task.fields[rate]:.0f}/s"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not (console.is_terminal if show is None else show),
        )
        self._task = self._progress.add_task(title, total=1.0, done=0, hours=0.0, rate=0.0)
        self._done = self._new = 0
        self._speech_s = 0.0
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def start(self, done: int) -> None:
        """Work begins, after what an earlier call did."""
        self._done, self._began = done, time.monotonic()

    def reach(self, fraction: float) -> None:
        """That much of the index is done."""
        self._progress.update(self._task, completed=fraction)

    def count(self, speech_s: float) -> None:
        """One more is done."""
        self._done += 1
        self._new += 1
        self._speech_s += speech_s
        rate = self._new / max(time.monotonic() - self._began, 1e-9)
        self._progress.update(self._task, done=self._done, hours=self._speech_s / 3600, rate=rate)
