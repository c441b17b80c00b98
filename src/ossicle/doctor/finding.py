"""Collect and print the findings of the doctor."""

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
    """The result of one check."""

    level: Level
    """``error`` if the run would fail or learn nothing, ``warning`` if it may not behave as expected, else ``ok``."""
    check: str
    """Short name of the check."""
    message: str
    fix: str = ""
    """Change that fixes the problem."""


@dataclass
class Report:
    """Findings in the order of the checks; each is printed at once."""

    console: Console
    findings: list[Finding] = field(default_factory=list)

    def part(self, title: str) -> None:
        """Print the title of the next group of checks."""
        self.console.print(f"\n[bold]{title}[/]")

    def ok(self, check: str, message: str) -> None:
        """Report that a check passed."""
        self._add(Finding("ok", check, message))

    def warning(self, check: str, message: str, fix: str) -> None:
        """Report a possible problem."""
        self._add(Finding("warning", check, message, fix))

    def error(self, check: str, message: str, fix: str) -> None:
        """Report a problem."""
        self._add(Finding("error", check, message, fix))

    def of(self, level: Level) -> list[Finding]:
        """Return the findings of one level."""
        return [finding for finding in self.findings if finding.level == level]

    def summary(self) -> str:
        """Return one line with the number of findings of each level."""
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
    """Return the first few of ``items`` in one line, and the number of the others."""
    texts = [str(item) for item in items]
    more = f" and {len(texts) - EXAMPLES} more" if len(texts) > EXAMPLES else ""
    return ", ".join(texts[:EXAMPLES]) + more


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
