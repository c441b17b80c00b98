"""Scores a file of hypotheses: each task and each pair of languages by itself, never one number over all.

``hypotheses.jsonl`` holds one `Hypothesis` a line. It is all that scoring reads, so it can be copied, edited and
scored again where no model is at hand.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from ossicle.evaluate.metrics import metrics_for

HYPOTHESES_NAME = "hypotheses.jsonl"

Key = tuple[str | None, ...]
"""Identity of a line: id, task, target language, instruction."""


class HypothesesError(ValueError):
    """A hypotheses file cannot be scored; the message names the file, the line and the fix."""


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """One decoded utterance and what it is judged against."""

    id: str
    hypothesis: str
    references: tuple[str, ...]
    task: str | None = None
    instruction: str | None = None
    language: str | None = None
    """Language spoken."""
    target_language: str | None = None
    """Language to answer in; null = the one spoken."""
    audio: str | None = None
    source: str = "<memory>"
    """``file:line`` it was read from, for errors; not part of the file."""

    @property
    def key(self) -> Key:
        """What makes a line its own: one recording may carry several tasks and questions."""
        return self.id, self.task, self.target_language, self.instruction

    def to_json(self) -> str:
        """The line of the file, without the line end."""
        entry = asdict(self)
        del entry["source"]
        return json.dumps(entry, ensure_ascii=False)


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


def score(hypotheses_path: Path) -> list[Row]:
    """One row per (task, language, target language) of the file, in alphabetical order.

    Raises:
        HypothesesError: the file is missing, empty or malformed, or a line has no references.
    """
    groups: dict[tuple[str, str, str], list[Hypothesis]] = defaultdict(list)
    for line in read_hypotheses(hypotheses_path):
        if not line.references:
            raise HypothesesError(
                f'{line.source}: no references; give the manifest line an "answer", or a "text" if the task is asr'
            )
        target = line.target_language or line.language
        groups[line.task or "asr", line.language or "", target or ""].append(line)
    return [_score_group(lines) for _, lines in sorted(groups.items())]


def write_scores(hypotheses_path: Path, rows: Sequence[Row] | None = None) -> Path:
    """Scores the file (unless ``rows`` already holds that) and writes ``<name>.scores.json`` beside it."""
    rows = score(hypotheses_path) if rows is None else rows
    path = hypotheses_path.with_suffix(".scores.json")
    content = {"hypotheses": hypotheses_path.name, "rows": [asdict(row) for row in rows]}
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def print_table(rows: Sequence[Row], console: Console | None = None) -> None:
    """Prints the scores, one metric a line, then each signature once."""
    table = Table("task", "language", box=box.SIMPLE)
    table.add_column("n", justify="right")
    table.add_column("metric")
    table.add_column("score", justify="right")
    for row in rows:
        head = (row.task, _languages(row), str(row.n))
        for name, value in row.scores.items():
            table.add_row(*head, name, f"{value:.2f}")
            head = ("", "", "")  # what all metrics of a row share is said once
        table.add_section()

    console = console or Console()
    console.print(table)
    for name, signature in dict.fromkeys(item for row in rows for item in row.signatures.items()):
        console.print(f"{name}: {signature}", style="dim", markup=False, highlight=False)


def read_hypotheses(path: Path) -> list[Hypothesis]:
    """All lines of a hypotheses file, checked; blank lines are ignored and unknown keys dropped.

    Raises:
        HypothesesError: as for `score`.
    """
    if not path.is_file():
        raise HypothesesError(f"{path}: no such file; `ossicle evaluate` writes it")
    first_seen: dict[Key, int] = {}
    hypotheses = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            hypothesis = parse_line(line, f"{path}:{number}")
            first = first_seen.setdefault(hypothesis.key, number)
            if first != number:
                raise HypothesesError(
                    f"{path}:{number}: {hypothesis.id!r} with this task and instruction is on line {first} already; "
                    "delete one of the two"
                )
            hypotheses.append(hypothesis)
    if not hypotheses:
        raise HypothesesError(f"{path}: no hypotheses in this file; decode at least one utterance")
    return hypotheses


def parse_line(line: bytes, source: str) -> Hypothesis:
    """A line of a hypotheses file; ``source`` is its ``file:line`` for the error."""
    try:
        entry = json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise HypothesesError(f"{source}: not JSON ({error}); fix or delete the line") from error
    if not isinstance(entry, dict):
        raise HypothesesError(f"{source}: expected a JSON object, one per line")
    for name in ("id", "hypothesis"):
        if not isinstance(entry.get(name), str):
            raise HypothesesError(f'{source}: "{name}" must be a string')
    for name in _OPTIONAL:
        if not isinstance(entry.get(name), str | None):
            raise HypothesesError(f'{source}: "{name}" must be a string or null')
    references = entry.get("references")
    if not isinstance(references, list) or not all(isinstance(reference, str) for reference in references):
        raise HypothesesError(f'{source}: "references" must be a list of strings')
    optional = {name: entry.get(name) for name in _OPTIONAL}
    return Hypothesis(
        id=entry["id"], hypothesis=entry["hypothesis"], references=tuple(references), source=source, **optional
    )


_OPTIONAL = ("task", "instruction", "language", "target_language", "audio")


def _score_group(lines: Sequence[Hypothesis]) -> Row:
    first = lines[0]
    said, references = [line.hypothesis for line in lines], [line.references for line in lines]
    language = first.target_language or first.language  # one for the whole group
    found = {name: metric(said, references, language) for name, metric in metrics_for(first.task).items()}
    return Row(
        task=first.task or "asr",
        language=first.language,
        target_language=language,
        n=len(lines),
        scores={name: result.value for name, result in found.items()},
        signatures={name: result.signature for name, result in found.items()},
    )


def _languages(row: Row) -> str:
    spoken = row.language or "?"
    return f"{spoken} → {row.target_language}" if row.target_language not in (None, row.language) else spoken
