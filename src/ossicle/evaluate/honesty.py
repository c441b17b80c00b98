"""Show what a score is worth: beside the model, its cascade, its text-only bound, and its score with other audio.

All columns have the same utterances, by default a seeded subset, so that they cost little. A model whose score with the
audio of other utterances is not clearly worse does not use its audio.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ossicle.batch import Sample
from ossicle.data.dataset import subset
from ossicle.errors import OssicleError
from ossicle.evaluate.bootstrap import Paired
from ossicle.evaluate.compare import compare
from ossicle.evaluate.hypotheses import GroupKey, Hypothesis, read_hypotheses, task_name
from ossicle.evaluate.other_audio import with_other_audio
from ossicle.evaluate.references import hypothesis_of
from ossicle.evaluate.score import ScoredGroup, ScoreOptions, score_lines

LINES = 100
"""Default number of utterances of the comparison, over all tasks and languages."""
TEXT, CASCADE, RECOGNISER, OTHER_AUDIO = KINDS = ("text", "cascade", "recogniser", "other-audio")
"""Kinds of comparison: the LLM reads the transcripts, the LLM reads a recogniser's output, the recogniser
alone (for recognition), and the model with other audio."""
OWN = "own-transcript"
"""Kind of decoding in which the LLM reads what the model itself transcribes; it is not compared."""
MAIN_METRICS: dict[str, tuple[str, ...]] = {
    "asr": ("wer", "cer"),
    "st": ("bleu", "chrf"),
    "voice": ("em",),
    "meta": ("accuracy",),
}
"""Task -> candidate metrics; the first that could be computed is shown. Other tasks have ``f1``."""
ERROR_RATES = {"wer", "cer"}
"""Metrics of which a low value is good."""

Decode = Callable[[str, Sequence[Sample], Path], None]
"""Function of a kind, its samples and a file: decodes the samples into the file. It raises `OssicleError` if it cannot,
such as for a cascade with an encoder that recognises nothing."""


@dataclass(frozen=True, kw_only=True)
class Honesty:
    """Scores of one task in one pair of languages, all on the same lines."""

    task: str
    language: str | None
    target_language: str | None
    n: int
    """Number of lines compared."""
    of: int
    """Number of lines that the model answered."""
    metric: str
    speech: float
    """Score of the model on these lines."""
    scores: dict[str, float] = field(default_factory=dict)
    """One of `KINDS` -> score."""
    missing: dict[str, str] = field(default_factory=dict)
    """One of `KINDS` -> why there is no score."""
    other_minus_speech: Paired | None = None
    """Score with other audio minus score of the model, with the paired bootstrap."""
    units: str = ""
    """Resampled units, e.g. ``12 speakers``."""
    ignores_audio: bool | None = None
    """True if the score with other audio is not clearly worse: its 95% interval of the difference holds 0, or the score
    is better. None if this cannot be told."""


def honesty(
    answers: Path, samples: Sequence[Sample], decode: Decode, *, lines: int = LINES, options: ScoreOptions | None = None
) -> list[Honesty]:
    """Decode what is missing and return a row for each task and pair of languages.

    A second call with the same arguments decodes nothing again, as far as ``decode`` resumes.

    Args:
        answers: file of hypotheses of the model itself.
        samples: the samples that it answers.
        decode: function that writes a further file of hypotheses, into the folder ``NAME.honesty`` beside ``answers``.
        lines: about how many utterances are compared. Each task and language keeps its share, and at least one line.
        options: settings of scoring.
    """
    options = replace(options or ScoreOptions(), official=False, comet=None, manifests=())
    said = read_hypotheses(answers)
    answered = {line.key for line in said}
    samples = [sample for sample in samples if hypothesis_of(sample).key in answered]
    chosen = subset(samples, min(1.0, lines / len(samples)))
    keys = {hypothesis_of(sample).key for sample in chosen}
    groups = score_lines([line for line in said if line.key in keys], options)
    totals = Counter(line.group for line in said)
    found, missing = _decoded(chosen, decode, answers.with_name(f"{answers.stem}.honesty"), options)
    rows = [_row(group, found, missing, totals[group.lines[0].group], options) for group in groups]
    return [row for row in rows if row is not None]


def _decoded(
    samples: Sequence[Sample], decode: Decode, folder: Path, options: ScoreOptions
) -> tuple[dict[str, dict[GroupKey, ScoredGroup]], dict[str, str]]:
    """Return the scored groups of each kind, and why others cannot be had."""
    with_text = [sample for sample in samples if sample.text]
    recognition = [sample for sample in samples if task_name(sample.task) == "asr"]
    wanted = {
        TEXT: with_text,
        CASCADE: list(samples),
        RECOGNISER: recognition,
        OTHER_AUDIO: with_other_audio(samples),
    }
    found: dict[str, dict[GroupKey, ScoredGroup]] = {}
    missing: dict[str, str] = {}
    for kind, some in wanted.items():
        if not some:
            continue  # each row says why
        path = folder / f"{kind}.jsonl"
        try:
            decode(kind, some, path)
            lines = read_hypotheses(path)
        except OssicleError as error:
            missing[kind] = str(error)
            continue
        found[kind] = {group.lines[0].group: group for group in score_lines(lines, options)}
    return found, missing


def _row(
    group: ScoredGroup,
    found: Mapping[str, Mapping[GroupKey, ScoredGroup]],
    missing: Mapping[str, str],
    total: int,
    options: ScoreOptions,
) -> Honesty | None:
    """Return the row of one group, or None without a metric. Lines that a kind lacks are left out of all kinds."""
    key = group.lines[0].group
    kinds, common = {}, {line.key for line in group.lines}
    for kind, groups in found.items():
        both = common & {line.key for line in groups[key].lines} if key in groups else set()
        if 2 * len(both) > len(common):  # one kind with few lines must not hide the others
            kinds[kind], common = groups[key], both
    group = _only(group.lines, common, options)
    kinds = {kind: _only(each.lines, common, options) for kind, each in kinds.items()}
    metric = next((name for name in MAIN_METRICS.get(key[0], ("f1",)) if name in group.scores), None)
    if metric is None:  # the scores of the whole file say why
        return None
    reasons = {
        TEXT: "too few lines have a transcript",
        CASCADE: "too few lines could be recognised",
        RECOGNISER: "too few lines could be recognised",
        OTHER_AUDIO: "too few lines differ in recording, transcript and answer",
    }
    scores = {kind: each.scores[metric].value for kind, each in kinds.items() if metric in each.scores}
    difference, units = None, ""
    if OTHER_AUDIO in scores:
        [compared] = compare([group], [kinds[OTHER_AUDIO]], options)
        difference, units = compared.metrics.get(metric), compared.units
    return Honesty(
        task=key[0],
        language=key[1] or None,
        target_language=key[2] or None,
        n=len(group.lines),
        of=total,
        metric=metric,
        speech=group.scores[metric].value,
        scores=scores,
        missing={
            kind: missing.get(kind) or reason
            for kind, reason in reasons.items()
            if kind not in scores and (kind != RECOGNISER or key[0] == "asr")
        },
        other_minus_speech=difference,
        units=units,
        ignores_audio=_ignores_audio(metric, difference),
    )


def _only(lines: Sequence[Hypothesis], keys: set[tuple[str | None, ...]], options: ScoreOptions) -> ScoredGroup:
    [group] = score_lines([line for line in lines if line.key in keys], options)
    return group


def _ignores_audio(metric: str, difference: Paired | None) -> bool | None:
    """Return True if other audio is not clearly worse, or None without an interval."""
    if difference is None or difference.interval is None:
        return None
    return difference.interval.low <= 0 if metric in ERROR_RATES else difference.interval.high >= 0
