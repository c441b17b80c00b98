"""Read and write files of hypotheses: one decoded utterance per line, with its references."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from ossicle.errors import HypothesesError
from ossicle.languages import canonical_tag

Key = tuple[str | None, ...]
"""Identity of a line within its file: id, task, target language, instruction."""

GroupKey = tuple[str, str, str]
"""Task, spoken language and answer language of lines that are scored together; "" for a language that is not given."""

_OPTIONAL = ("task", "instruction", "language", "target_language", "audio", "speaker", "text", "input_hash")
_SHORT = ("task", "language", "target_language", "audio", "speaker")


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """One decoded utterance and its references. Scoring reads nothing else."""

    id: str
    hypothesis: str
    """Answer of the model."""
    references: tuple[str, ...]
    """Accepted answers; each metric takes the best match."""
    task: str | None = None
    """Task of the line; None is scored as ``asr``."""
    instruction: str | None = None
    language: str | None = None
    """Spoken language."""
    target_language: str | None = None
    """Language of the answer; None is the spoken language."""
    audio: str | None = None
    speaker: str | None = None
    text: str | None = None
    """Transcript of the speech, if known. COMET and the failure rule ``untranslated`` need it."""
    input_hash: str | None = None
    """Hash of everything that the answer depends on besides the model, see `ossicle.evaluate.inputs`."""
    source: str = "<memory>"
    """``file:line`` that the line was read from, for error messages. It is not written to the file."""

    @property
    def key(self) -> Key:
        """Identity of the line; one recording may have several tasks and questions."""
        return self.id, self.task, canonical_tag(self.target_language), self.instruction

    @property
    def group(self) -> GroupKey:
        """Group of lines that this line is scored with; ``zh_cn`` and ``zh-CN`` are one language."""
        spoken = canonical_tag(self.language)
        return task_name(self.task), spoken, canonical_tag(self.target_language) or spoken

    def to_json(self) -> str:
        """Return the line of the file, without the newline."""
        entry = asdict(self)
        del entry["source"]
        line = json.dumps(entry, ensure_ascii=False)
        return line if line.isascii() or _is_writable(line) else json.dumps(entry)


def task_name(task: str | None) -> str:
    """Return a task in lower case, so that ``ASR`` is ``asr``; None and an empty name are ``asr``."""
    return (task or "").strip().lower() or "asr"


def check_exists(path: Path) -> None:
    """Raise `HypothesesError` if there is no file ``path``."""
    if not path.is_file():
        raise HypothesesError(f"{path}: no such file; `ossicle evaluate` writes it")


def read_hypotheses(path: Path) -> list[Hypothesis]:
    """Load and validate all lines of a file of hypotheses. Blank lines and unknown keys are ignored.

    Raises:
        HypothesesError: the file is missing, empty or invalid, or holds a line twice.
    """
    check_exists(path)
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
                    "delete one of the two lines"
                )
            hypotheses.append(hypothesis)
    if not hypotheses:
        raise HypothesesError(f"{path}: no hypotheses in this file; decode at least one utterance")
    return hypotheses


def grouped(lines: Iterable[Hypothesis]) -> dict[GroupKey, list[Hypothesis]]:
    """Return the lines of each group, with the groups in alphabetical order.

    Raises:
        HypothesesError: a line has no references.
    """
    groups: dict[GroupKey, list[Hypothesis]] = defaultdict(list)
    for line in lines:
        if not line.references:
            raise HypothesesError(
                f'{line.source}: no references; give the manifest line an "answer", or a "text" if the task is asr'
            )
        groups[line.group].append(line)
    return dict(sorted(groups.items()))


def parse_line(line: bytes, source: str) -> Hypothesis:
    """Parse one line of a file of hypotheses; ``source`` is its ``file:line``.

    Raises:
        HypothesesError: the line is not a JSON object, or a field has the wrong type.
    """
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits, and deep nesting
        raise HypothesesError(f"{source}: not JSON ({error}); fix or delete the line") from error
    if not isinstance(entry, dict):
        raise HypothesesError(f"{source}: expected a JSON object; fix or delete the line")
    for name in ("id", "hypothesis"):
        if not isinstance(entry.get(name), str):
            raise HypothesesError(f'{source}: "{name}" must be a string')
    for name in _OPTIONAL:
        if not isinstance(entry.get(name), str | None):
            raise HypothesesError(f'{source}: "{name}" must be a string or null')
    for name in ("id", *_SHORT):
        if not _is_writable(entry.get(name) or ""):
            raise HypothesesError(f'{source}: "{name}" has half of a surrogate pair; correct it')
    references = entry.get("references")
    if not isinstance(references, list) or not all(isinstance(reference, str) for reference in references):
        raise HypothesesError(f'{source}: "references" must be a list of strings')
    optional = {name: entry.get(name) for name in _OPTIONAL}
    return Hypothesis(
        id=entry["id"], hypothesis=entry["hypothesis"], references=tuple(references), source=source, **optional
    )


def _is_writable(line: str) -> bool:
    """Return False if the line has half of a surrogate pair, which UTF-8 cannot express and JSON escapes can."""
    try:
        line.encode()
    except UnicodeEncodeError:
        return False
    return True
