"""Test each part of the paper's claim on the rows of a study.

One row *is better* than another if its mean over seeds is. Two rows are *apart* if neither their bootstrap intervals
nor their mean ± sd over seeds overlap. A single seed has no sd and is never apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from ossicle.evaluate.bootstrap import percentile_interval
from ossicle_lab.study.config import MODE_NAMES, MODES, Claim, Mode
from ossicle_lab.study.interval import column_of
from ossicle_lab.study.table import Figure, Row

Verdict = Literal["holds", "partly", "fails", "not tested"]
FULL = 1.0


@dataclass(frozen=True)
class Finding:
    """A part of the claim with its verdict."""

    mode: Mode
    claim: str
    """The claim as a sentence that begins with the name of the contrastive run."""
    verdict: Verdict
    figures: str
    """The numbers behind the verdict, or what is missing."""


def evaluate_claims(rows: Sequence[Row], claim: Claim, tasks: Sequence[str]) -> list[Finding]:
    """Return the verdict on every part of the claim for every contrastive run.

    The claim is tested at the same number of steps, and under each other mode that has rows.
    """
    modes = [mode for mode in MODES if mode == "steps" or any(row.mode == mode for row in rows)]
    return [
        finding
        for mode in modes
        for name in claim.contrastive
        for finding in _Judge(rows, claim, mode, name).findings(tasks)
    ]


@dataclass(frozen=True)
class _Judge:
    """Tests the claim for one contrastive run under one mode."""

    rows: Sequence[Row]
    claim: Claim
    mode: Mode
    name: str

    def findings(self, tasks: Sequence[str]) -> Iterator[Finding]:
        few = f"{100 * self.claim.fraction:.3g}%"
        for task in tasks:
            if task == "asr":
                yield self._close(column_of(task))
            else:
                what = f"{self.name} beats {self.claim.asr} on {task_title(task)}, both with {few} of the data"
                yield self._better(what, column_of(task), self.claim.asr, self.claim.fraction)
        for task in tasks:
            what = f"{self.name} with {few} of the data beats {self.claim.none} with all of it on {task_title(task)}"
            yield self._better(what, column_of(task), self.claim.none, FULL)

    def _better(self, what: str, column: str, other_name: str, fraction: float) -> Finding:
        ours, other = self._figure(self.name, self.claim.fraction, column), self._figure(other_name, fraction, column)
        if ours is None or other is None:
            return Finding(self.mode, what, "not tested", self._missing(other_name, fraction))
        sign = -1 if column.endswith(":wer") else 1
        better = sign * (ours.mean - other.mean) > 0
        verdict: Verdict = "fails" if not better else "holds" if apart(ours, other) else "partly"
        return Finding(self.mode, what, verdict, f"{_metric(column)} {describe(ours)} against {describe(other)}")

    def _close(self, column: str) -> Finding:
        """Test that the WER is at most ``asr_within`` points above that of ASR pretraining.

        The claim holds if the paired interval confirms it and both rows have several seeds.
        """
        few, most = self.claim.fraction, self.claim.asr_within
        both = f"both with {100 * few:.3g}% of the data"
        what = f"{self.name} is within {most:g} points of {self.claim.asr} on recognition, {both}"
        ours, other = self._figure(self.name, few, column), self._figure(self.claim.asr, few, column)
        if ours is None or other is None:
            return Finding(self.mode, what, "not tested", self._missing(self.claim.asr, few))
        worse, interval = ours.mean - other.mean, percentile_interval(ours.draws - other.draws)
        sure = interval.high <= most and ours.sd is not None and other.sd is not None
        verdict: Verdict = "fails" if worse > most else "holds" if sure else "partly"
        figures = (
            f"{_metric(column)} {describe(ours)} against {describe(other)}: {worse:+.1f}, "
            f"paired 95% interval {interval.low:+.1f} to {interval.high:+.1f}"
        )
        return Finding(self.mode, what, verdict, figures)

    def _figure(self, name: str, fraction: float, column: str) -> Figure | None:
        """Return a figure of this mode. Rows without stage 1 are the same in every mode, so any mode will do."""
        modes = MODES if name == self.claim.none else (self.mode,)
        for row in self.rows:
            if row.mode in modes and (row.name, row.fraction) == (name, fraction):
                return row.figures.get(column)
        return None

    def _missing(self, other: str, fraction: float) -> str:
        few, much = (f"{100 * share:.3g}%" for share in (self.claim.fraction, fraction))
        return f"needs {self.name} at {few} and {other} at {much}, {MODE_NAMES[self.mode]}"


def task_title(task: str) -> str:
    """Return the title of a task, such as ``translation (de)`` for ``st/de``."""
    kind, _, language = task.partition("/")
    titles = {"asr": "recognition", "st": f"translation ({language})", "qa": "questions"}
    return titles.get(kind, kind)


def apart(a: Figure, b: Figure) -> bool:
    """Return True if neither the bootstrap intervals nor the spreads over seeds of two figures overlap."""
    if a.sd is None or b.sd is None:
        return False
    over_utterances = a.low > b.high or b.low > a.high
    return over_utterances and abs(a.mean - b.mean) > a.sd + b.sd


def describe(figure: Figure) -> str:
    """Return mean, spread over seeds and interval over utterances as text."""
    seeds = "one seed" if figure.sd is None else f"± {figure.sd:.1f} over {len(figure.values)} seeds"
    return f"{figure.mean:.1f} ({seeds}; {figure.low:.1f} to {figure.high:.1f})"


def _metric(column: str) -> str:
    return column.rpartition(":")[2].upper()
