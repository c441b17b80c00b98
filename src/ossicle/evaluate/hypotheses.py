"""A file of hypotheses: one decoded utterance a line, and what it is judged against. Scoring reads nothing else."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from ossicle.errors import HypothesesError

Key = tuple[str | None, ...]
"""Identity of a line: id, task, target language, instruction."""

Group = tuple[str, str, str]
"""What gets a score of its own: task, language spoken, language of the answers; "" where the file names none."""


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
    speaker: str | None = None
    text: str | None = None
    """What was said, where known: translations that repeat it are untranslated, and COMET reads it."""
    source: str = "<memory>"
    """``file:line`` it was read from, for errors; not part of the file."""

    @property
    def key(self) -> Key:
        """What makes a line its own: one recording may carry several tasks and questions."""
        return self.id, self.task, self.target_language, self.instruction

    @property
    def group(self) -> Group:
        """No task means speech recognition; no target language the one spoken."""
        return self.task or "asr", self.language or "", self.target_language or self.language or ""

    def to_json(self) -> str:
        """The line of the file, without the line end."""
        entry = asdict(self)
        del entry["source"]
        return json.dumps(entry, ensure_ascii=False)


def read_hypotheses(path: Path) -> list[Hypothesis]:
    """All lines of a hypotheses file, checked; blank lines are ignored and unknown keys dropped.

    Raises:
        HypothesesError: the file is missing, empty or malformed, or two of its lines are the same.
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


def grouped(lines: Iterable[Hypothesis]) -> dict[Group, list[Hypothesis]]:
    """Lines by `Hypothesis.group`, groups in alphabetical order.

    Raises:
        HypothesesError: a line has no references.
    """
    groups: dict[Group, list[Hypothesis]] = defaultdict(list)
    for line in lines:
        if not line.references:
            raise HypothesesError(
                f'{line.source}: no references; give the manifest line an "answer", or a "text" if the task is asr'
            )
        groups[line.group].append(line)
    return dict(sorted(groups.items()))


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


_OPTIONAL = ("task", "instruction", "language", "target_language", "audio", "speaker", "text")
