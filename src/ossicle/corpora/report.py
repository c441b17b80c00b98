"""Count what a preparation wrote and what it left out."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ossicle.corpora.items import Dropped
from ossicle.errors import CorpusError
from ossicle.files import write_json

REPORT_NAME = "prepare.json"


@dataclass
class Count:
    """The contents of one manifest."""

    lines: int = 0
    recordings: int = 0
    """Number of recordings or segments. There are fewer than lines if several lines use the same speech."""
    speech_s: float = 0.0
    """Total duration of the recordings in seconds; each recording counts once."""


@dataclass
class Reason:
    """The utterances that were left out for one reason."""

    count: int = 0
    first: str = ""
    """Id and detail of the first of these utterances."""


@dataclass
class Report:
    """The counts of a preparation, which are printed and stored in ``prepare.json``."""

    about: dict[str, Any]
    """Corpus, source and options."""
    manifests: dict[str, Count] = field(default_factory=dict)
    dropped: dict[str, Reason] = field(default_factory=dict)
    already_done: bool = False
    """True if an earlier call prepared everything."""
    waiting: str = ""
    """A line with the shards that are not finished; empty if all are, and the manifests are written."""

    def count(self, name: str, speech_s: float | None) -> None:
        """Count a line of the manifest ``name``; ``speech_s`` is None if its recording is counted already."""
        count = self.manifests.setdefault(name, Count())
        count.lines += 1
        if speech_s is not None:
            count.recordings += 1
            count.speech_s += speech_s

    def drop(self, dropped: Dropped) -> None:
        """Count an utterance that is left out."""
        reason = self.dropped.setdefault(dropped.reason, Reason())
        reason.count += 1
        reason.first = reason.first or f"{dropped.id}{': ' if dropped.detail else ''}{dropped.detail}"

    def main_reason(self) -> str:
        """Return the most frequent reason with its count and its first utterance."""
        if not self.dropped:
            return "the source contains nothing that matches these options"
        name, reason = max(self.dropped.items(), key=lambda item: item[1].count)
        return f"{name} ({reason.count} times; first {reason.first})"

    def save(self, path: Path) -> None:
        """Write the report as JSON."""
        content = asdict(self)
        del content["already_done"], content["waiting"]
        write_json(path, content)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Load the report that `save` wrote. Raises `CorpusError` if the file is damaged."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls(
                content["about"],
                {name: Count(**count) for name, count in content["manifests"].items()},
                {name: Reason(**reason) for name, reason in content["dropped"].items()},
                already_done=True,
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CorpusError(f"{path}: is damaged ({error!r}); remove it to prepare the corpus again") from error

    def print(self, out: Path, console: Console | None = None) -> None:
        """Print a table of the manifests, then the number of utterances that were left out for each reason."""
        console = console or Console()
        if self.waiting:
            console.print(self.waiting, highlight=False, markup=False, soft_wrap=True)
            return
        table = Table(escape(f"manifests in {out}"), box=box.SIMPLE)
        for column in ("lines", "recordings", "hours"):
            table.add_column(column, justify="right")
        for name, count in sorted(self.manifests.items()):
            hours = f"{count.speech_s / 3600:.2f}"
            table.add_row(f"{name}.jsonl", str(count.lines), str(count.recordings), hours)
        lines = [
            f"left out, {name}: {reason.count} (first: {reason.first})"
            for name, reason in sorted(self.dropped.items(), key=lambda item: -item[1].count)
        ]
        if self.dropped:
            lines.append(f"complete list: {out / 'dropped.jsonl'}")
        if self.already_done:
            text = f"{out}: was prepared before (remove {REPORT_NAME} to prepare it again)"
            console.print(text, highlight=False, markup=False, soft_wrap=True)
        console.print(table)
        for line in lines:
            console.print(line, highlight=False, markup=False, soft_wrap=True)
