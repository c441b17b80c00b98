"""The paper's claim, part by part, against the rows of a study: holds, partly, fails or not tested, with the figures.

Of two rows one *is better* if its mean over seeds is. They are *apart* if neither their bootstrap intervals nor their
mean +- sd over seeds overlap; a single seed has no sd, and is never apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ossicle.evaluate.bootstrap import interval as interval_of
from ossicle_lab.study.config import MODE_NAMES, MODES, Claim, Mode
from ossicle_lab.study.interval import column_of

if TYPE_CHECKING:
    from ossicle_lab.study.results import Figure, Row

Verdict = Literal["holds", "partly", "fails", "not tested"]
FULL = 1.0


@dataclass(frozen=True)
class Finding:
    """A part of the claim and what became of it."""

    mode: Mode
    claim: str
    verdict: Verdict
    figures: str
    """The numbers behind the verdict, in words."""


def evaluate_claims(rows: Sequence[Row], claim: Claim, tasks: Sequence[str]) -> list[Finding]:
    """Every part of the claim for every contrastive run, at matched steps and, if there are rows, the other modes."""
    modes = [mode for mode in MODES if mode == "steps" or any(row.mode == mode for row in rows)]
    return [
        finding for mode in modes for name in claim.contrastive for finding in _Judge(rows, claim, mode, name).of(tasks)
    ]


@dataclass(frozen=True)
class _Judge:
    rows: Sequence[Row]
    claim: Claim
    mode: Mode
    name: str

    def of(self, tasks: Sequence[str]) -> Iterator[Finding]:
        few = f"{100 * self.claim.fraction:.3g}%"
        for task in tasks:
            if task == "asr":
                yield self._close(column_of(task))
            else:
                what = f"{self.name} beats {self.claim.asr} on {in_words(task)}, both with {few} of the data"
                yield self._better(what, column_of(task), self.claim.asr, self.claim.fraction)
        for task in tasks:
            what = f"{self.name} with {few} of the data beats {self.claim.none} with all of it on {in_words(task)}"
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
        """Within so many points of WER of ASR pretraining: holds if the paired interval over several seeds says so."""
        few, most = self.claim.fraction, self.claim.asr_within
        both = f"both with {100 * few:.3g}% of the data"
        what = f"{self.name} is within {most:g} points of {self.claim.asr} on recognition, {both}"
        ours, other = self._figure(self.name, few, column), self._figure(self.claim.asr, few, column)
        if ours is None or other is None:
            return Finding(self.mode, what, "not tested", self._missing(self.claim.asr, few))
        worse, interval = ours.mean - other.mean, interval_of(ours.draws - other.draws)
        sure = interval.high <= most and ours.sd is not None and other.sd is not None
        verdict: Verdict = "fails" if worse > most else "holds" if sure else "partly"
        figures = (
            f"{_metric(column)} {describe(ours)} against {describe(other)}: {worse:+.1f}, "
            f"paired 95% interval {interval.low:+.1f} to {interval.high:+.1f}"
        )
        return Finding(self.mode, what, verdict, figures)

    def _figure(self, name: str, fraction: float, column: str) -> Figure | None:
        """Of this mode; where there is no stage 1, of any mode, as they differ in it alone."""
        modes = MODES if name == self.claim.none else (self.mode,)
        for row in self.rows:
            if row.mode in modes and (row.name, row.fraction) == (name, fraction):
                return row.figures.get(column)
        return None

    def _missing(self, other: str, fraction: float) -> str:
        few, much = (f"{100 * share:.3g}%" for share in (self.claim.fraction, fraction))
        return f"needs {self.name} at {few} and {other} at {much}, {MODE_NAMES[self.mode]}"


def in_words(task: str) -> str:
    """``st/de`` -> ``translation (de)``."""
    kind, _, language = task.partition("/")
    words = {"asr": "recognition", "st": f"translation ({language})", "qa": "questions"}
    return words.get(kind, kind)


def apart(a: Figure, b: Figure) -> bool:
    """Whether neither the bootstrap intervals nor the spreads over seeds of two figures overlap."""
    if a.sd is None or b.sd is None:
        return False
    over_utterances = a.low > b.high or b.low > a.high
    return over_utterances and abs(a.mean - b.mean) > a.sd + b.sd


def describe(figure: Figure) -> str:
    """Mean, spread over seeds, and the interval over utterances."""
    seeds = "one seed" if figure.sd is None else f"± {figure.sd:.1f} over {len(figure.values)} seeds"
    return f"{figure.mean:.1f} ({seeds}; {figure.low:.1f} to {figure.high:.1f})"


def _metric(column: str) -> str:
    return column.rpartition(":")[2].upper()
