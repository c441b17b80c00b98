"""Collect how answers fail: the rates that scoring counted for each run, and examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ossicle.evaluate.hypotheses import read_hypotheses
from ossicle_lab.report.json_files import read_object

EXAMPLES_SHOWN = 3
"""Number of examples for each failure, from different runs if possible."""


@dataclass(frozen=True)
class Example:
    """An answer that failed."""

    run: str
    instruction: str
    reference: str
    hypothesis: str


@dataclass(frozen=True)
class Failing:
    """The failures of several runs. Missing files are left out."""

    files: Mapping[str, Path]
    """The hypotheses file of each run. The file with its scores, in the same folder, names the failures."""

    def rates(self) -> tuple[list[str], list[tuple[str, list[str]]]]:
        """Return the names of the failures and each run's percentages of the answers to which the checks apply."""
        totals = {run: found for run, path in self.files.items() if (found := _totals(_failures(path)))}
        names = list(next(iter(totals.values()), ()))
        return names, [(run, [found.get(name, "–") for name in names]) for run, found in totals.items()]

    def examples(self) -> list[tuple[str, list[Example]]]:
        """Return for each failure a few answers: first one of each run, then a second one."""
        ids: dict[str, dict[str, list[str]]] = {}
        for run, path in self.files.items():
            for failure in _failures(path):
                ids.setdefault(failure["name"], {}).setdefault(run, []).extend(failure["examples"])
        lines = {run: {line.id: line for line in read_hypotheses(path)} for run, path in self.files.items() if ids}
        shown = []
        for name, by_run in ids.items():
            chosen = list(_in_turn(by_run))[:EXAMPLES_SHOWN]
            found = [(run, lines[run][key]) for run, key in chosen if key in lines[run]]
            if found:
                examples = [
                    Example(run, line.instruction or "", (line.references or ("",))[0], line.hypothesis)
                    for run, line in found
                ]
                shown.append((name, examples))
        return shown


def _failures(hypotheses: Path) -> list[dict[str, Any]]:
    """Return the failures of all tasks; a kind of failure occurs once for each task."""
    scores = hypotheses.with_suffix(".scores.json")
    if not hypotheses.is_file() or not scores.is_file():
        return []
    rows = read_object(scores, "rows")["rows"]
    return [failure for row in rows for failure in row.get("failures", [])]


def _totals(failures: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return for each failure the percentage over all tasks of the lines to which the check applies."""
    sums: dict[str, tuple[int, int]] = {}
    for failure in failures:
        count, applicable = sums.get(failure["name"], (0, 0))
        sums[failure["name"]] = (count + failure["count"], applicable + failure["applicable"])
    return {name: f"{100 * count / lines:.1f}" if lines else "–" for name, (count, lines) in sums.items()}


def _in_turn(by_run: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str]]:
    """Yield (run, id): the first of every run, then the second of every run, and so on."""
    for place in range(max(map(len, by_run.values()), default=0)):
        for run, ids in by_run.items():
            if place < len(ids):
                yield run, ids[place]
