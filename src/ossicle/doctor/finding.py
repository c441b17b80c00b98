"""What the doctor finds, and how it says so."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from rich.console import Console
from rich.markup import escape

Level = Literal["ok", "warning", "error"]
_MARKS = {"ok": "[green]ok[/]     ", "warning": "[yellow]warning[/]", "error": "[bold red]error[/]  "}
EXAMPLES = 3


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    """``error``: the run would fail or learn nothing; ``warning``: it may not do what is expected."""
    check: str
    """Short name of what was looked at."""
    message: str
    fix: str = ""
    """What to change."""


@dataclass
class Report:
    """Findings in the order in which they were made; each is printed at once."""

    console: Console
    findings: list[Finding] = field(default_factory=list)

    def part(self, title: str) -> None:
        """Begin a part of the examination."""
        self.console.print(f"\n[bold]{title}[/]")

    def ok(self, check: str, message: str) -> None:
        """Note that something is as it should be."""
        self._add(Finding("ok", check, message))

    def warning(self, check: str, message: str, fix: str) -> None:
        """Note what may be wrong."""
        self._add(Finding("warning", check, message, fix))

    def error(self, check: str, message: str, fix: str) -> None:
        """Note what is wrong."""
        self._add(Finding("error", check, message, fix))

    def of(self, level: Level) -> list[Finding]:
        """The findings of one level."""
        return [finding for finding in self.findings if finding.level == level]

    def summary(self) -> str:
        """One line: how many of each level."""
        errors, warnings = len(self.of("error")), len(self.of("warning"))
        return f"{_count(errors, 'error')}, {_count(warnings, 'warning')}, {len(self.of('ok'))} checks passed"

    def _add(self, finding: Finding) -> None:
        self.findings.append(finding)
        self.console.print(
            f"  {_MARKS[finding.level]} {escape(finding.check)}: {escape(finding.message)}", soft_wrap=True
        )
        if finding.fix:
            self.console.print(f"          [cyan]->[/] {escape(finding.fix)}", soft_wrap=True)


def listed(items: Iterable[object]) -> str:
    """The first few of ``items``, and how many more there are."""
    texts = [str(item) for item in items]
    more = f" and {len(texts) - EXAMPLES} more" if len(texts) > EXAMPLES else ""
    return ", ".join(texts[:EXAMPLES]) + more


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
