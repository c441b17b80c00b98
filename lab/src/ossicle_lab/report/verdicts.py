"""Arrange a study's verdicts as a matrix: claims in rows, contrastive runs and modes in columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ossicle_lab.report.names import MODE_TITLES
from ossicle_lab.study.config import MODE_NAMES, MODES

SYMBOLS = {"holds": "✓", "partly": "◐", "fails": "✗", "not tested": "–"}


@dataclass(frozen=True)
class Verdict:
    """One claim about one contrastive run under one mode."""

    anchor: str
    """The id of its figures in the page."""
    verdict: str
    claim: str
    figures: str

    @property
    def symbol(self) -> str:
        """The character that shows the verdict besides its colour."""
        return SYMBOLS[self.verdict]


@dataclass(frozen=True)
class Verdicts:
    """All verdicts of a study."""

    runs: list[str]
    """Contrastive runs: each has one column for every mode."""
    modes: list[str]
    rows: list[tuple[str, list[Verdict | None]]]
    """Each claim without the run's name, and its verdicts in the order of the columns."""

    @property
    def mode_names(self) -> list[str]:
        """Short names of the modes."""
        return [MODE_NAMES[mode] for mode in self.modes]

    @property
    def counts(self) -> dict[str, int]:
        """The number of verdicts of each kind, without kinds that do not occur."""
        found = [cell.verdict for _, cells in self.rows for cell in cells if cell is not None]
        return {verdict: found.count(verdict) for verdict in SYMBOLS if verdict in found}

    def by_mode(self) -> list[tuple[str, list[Verdict]]]:
        """Return each mode's title and its verdicts, run after run."""
        width = len(self.modes)
        return [
            (
                MODE_TITLES[mode],
                [
                    cell
                    for run in range(len(self.runs))
                    for _, cells in self.rows
                    if (cell := cells[run * width + place]) is not None
                ],
            )
            for place, mode in enumerate(self.modes)
        ]


def arrange(findings: Sequence[Mapping[str, str]], runs: Sequence[str], prefix: str) -> Verdicts:
    """Arrange the claims of ``results.json``; every id in the page begins with ``prefix``."""
    table: dict[str, dict[tuple[str, str], Verdict]] = {}
    for i, finding in enumerate(findings):
        run = max((r for r in runs if finding["claim"].startswith(f"{r} ")), key=len, default="")
        claim = finding["claim"].removeprefix(f"{run} ")
        cell = Verdict(f"{prefix}-verdict-{i}", finding["verdict"], finding["claim"], finding["figures"])
        table.setdefault(claim, {})[run, finding["mode"]] = cell
    there = {key for cells in table.values() for key in cells}
    shown_runs = [run for run in [*runs, ""] if any(run == r for r, _ in there)]
    modes = [mode for mode in MODES if any(mode == m for _, m in there)]
    columns = [(run, mode) for run in shown_runs for mode in modes]
    rows = [(claim, [cells.get(column) for column in columns]) for claim, cells in table.items()]
    return Verdicts(shown_runs, list(modes), rows)
