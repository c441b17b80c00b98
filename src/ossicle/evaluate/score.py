"""Scores a file of hypotheses: each task and each pair of languages by itself, never one number over all.

``hypotheses.jsonl`` holds one `Hypothesis` a line. It is all that scoring reads, so it can be copied, edited and
scored again where no model is at hand.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from ossicle.errors import HypothesesError
from ossicle.evaluate.bootstrap import RESAMPLES, Interval, intervals
from ossicle.evaluate.comet import CometOptions, comet
from ossicle.evaluate.failures import LANGUAGE_HELP, Failure, can_identify, failures
from ossicle.evaluate.hypotheses import Hypothesis, grouped, read_hypotheses
from ossicle.evaluate.meta import attribute_metrics
from ossicle.evaluate.metrics import metrics_for
from ossicle.evaluate.parts import Score
from ossicle.evaluate.show import print_whole

__all__ = [
    "HYPOTHESES_NAME",
    "HypothesesError",
    "Hypothesis",
    "Row",
    "ScoreOptions",
    "Scored",
    "print_table",
    "read_hypotheses",
    "row_of",
    "score",
    "score_groups",
    "units_of",
    "write_scores",
]

HYPOTHESES_NAME = "hypotheses.jsonl"


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """How to score."""

    normalise: str = "basic"
    """What is done to texts before word and character errors: `normalise.NORMALISERS`."""
    spelling: Path | None = None
    """For ``whisper``: the normalizer.json of a Whisper checkpoint."""
    resamples: int = RESAMPLES
    """For the intervals; 0 = none."""
    seed: int = 0
    """Of the resampling."""
    comet: CometOptions | None = None
    """Translations also get COMET."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """The scores of one task in one pair of languages."""

    task: str
    language: str | None
    """Language spoken; null = not given."""
    target_language: str | None
    """Language of the answers: the one spoken where the file names no other."""
    n: int
    """Utterances."""
    scores: dict[str, float]
    """Metric name -> percentage."""
    signatures: dict[str, str]
    """Metric name -> the settings behind it."""
    intervals: dict[str, Interval] = field(default_factory=dict)
    """Metric name -> 95% bootstrap interval; none of a metric that has no `Parts`, nor of a single unit."""
    units: str = ""
    """What was resampled, e.g. ``12 speakers``."""
    failures: list[Failure] = field(default_factory=list)


@dataclass(frozen=True)
class Scored:
    """The lines of one task in one pair of languages, and their scores utterance by utterance."""

    lines: list[Hypothesis]
    scores: dict[str, Score]


def score(hypotheses_path: Path, options: ScoreOptions | None = None) -> list[Row]:
    """One row per (task, language, target language) of the file, in alphabetical order.

    Raises:
        HypothesesError: the file is missing, empty or malformed, or a line has no references.
    """
    options = options or ScoreOptions()
    return [row_of(group, options) for group in score_groups(hypotheses_path, options)]


def score_groups(hypotheses_path: Path, options: ScoreOptions | None = None) -> list[Scored]:
    """What the rows of `score` are made of; `ossicle.evaluate.compare` takes it too."""
    options = options or ScoreOptions()
    groups = grouped(read_hypotheses(hypotheses_path)).values()
    return [Scored(lines, _score_lines(lines, options)) for lines in groups]


def row_of(group: Scored, options: ScoreOptions) -> Row:
    """Scores with their intervals and failures."""
    first, found = group.lines[0], group.scores
    units, described = units_of(group.lines)
    parts = {name: result.parts for name, result in found.items() if result.parts is not None}
    bounds = intervals(list(parts.values()), units, resamples=options.resamples, seed=options.seed)
    return Row(
        task=first.task or "asr",
        language=first.language,
        target_language=first.target_language or first.language,
        n=len(group.lines),
        scores={name: result.value for name, result in found.items()},
        signatures={name: result.signature for name, result in found.items()},
        intervals={name: bound for name, bound in zip(parts, bounds, strict=True) if bound is not None},
        units=described,
        failures=failures(group.lines),
    )


def write_scores(hypotheses_path: Path, rows: Sequence[Row] | None = None) -> Path:
    """Scores the file (unless ``rows`` already holds that) and writes ``<name>.scores.json`` beside it."""
    rows = score(hypotheses_path) if rows is None else rows
    path = hypotheses_path.with_suffix(".scores.json")
    content = {"hypotheses": hypotheses_path.name, "rows": [asdict(row) for row in rows]}
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def print_table(rows: Sequence[Row], console: Console | None = None) -> None:
    """Prints the scores, one metric a line, then what went wrong how often, then each signature once."""
    table = Table("task", "language", box=box.SIMPLE)
    table.add_column("n", justify="right")
    table.add_column("metric")
    table.add_column("score", justify="right")
    table.add_column("95% interval", justify="right")
    for row in rows:
        head = (row.task, languages_of(row.language, row.target_language), str(row.n))
        for name, value in row.scores.items():
            table.add_row(*head, name, f"{value:.2f}", interval_text(row.intervals.get(name)))
            head = ("", "", "")  # what all metrics of a row share is said once
        table.add_section()

    console = console or Console()
    print_whole(table, console)
    notes = []
    for row in rows:
        found = [f"{failure.name} {failure.rate:.1f}%" for failure in row.failures if failure.count]
        if found:
            languages = languages_of(row.language, row.target_language)
            notes.append(f"failures, {row.task} {languages}: {', '.join(found)}")
    notes += [
        f"intervals: bootstrap over {units}" for units in dict.fromkeys(row.units for row in rows if row.intervals)
    ]
    if not can_identify() and any(row.target_language for row in rows):
        notes.append(LANGUAGE_HELP)
    signatures = dict.fromkeys(item for row in rows for item in row.signatures.items())
    notes += [f"{name}: {signature}" for name, signature in signatures if "/" not in name]
    for note in notes:
        console.print(note, style="dim", markup=False, highlight=False, soft_wrap=True)


def languages_of(spoken: str | None, target: str | None) -> str:
    """``en``, or ``en → de`` where the answers are in another language."""
    return f"{spoken or '?'} → {target}" if target not in (None, spoken) else spoken or "?"


def interval_text(interval: Interval | None) -> str:
    """``12.3 – 14.5``, or nothing."""
    return "" if interval is None else f"{interval.low:.2f} – {interval.high:.2f}"


def units_of(lines: Sequence[Hypothesis]) -> tuple[list[str], str]:
    """What to resample, line by line, and its name: speakers where all lines name theirs, else utterances.

    Lines with one id are one utterance: questions about the same recording are not independent. A single speaker
    cannot be resampled, so there the utterances are.
    """
    speakers = [line.speaker for line in lines if line.speaker is not None]
    if len(speakers) == len(lines) and len(set(speakers)) > 1:
        return speakers, f"{len(set(speakers))} speakers"
    utterances = [line.id for line in lines]
    return utterances, f"{len(set(utterances))} utterances"


def _score_lines(lines: Sequence[Hypothesis], options: ScoreOptions) -> dict[str, Score]:
    """Metric name -> score of lines that are one `Hypothesis.group`."""
    first = lines[0]
    said, references = [line.hypothesis for line in lines], [line.references for line in lines]
    language = first.target_language or first.language  # one for the whole group
    metrics = dict(metrics_for(first.task, normalise=options.normalise, language=language, spelling=options.spelling))
    if first.task == "meta":
        metrics |= attribute_metrics(references)
    found = {name: metric(said, references, language) for name, metric in metrics.items()}
    if first.task == "st" and options.comet is not None:
        found["comet"] = comet(lines, options.comet)
    return found
