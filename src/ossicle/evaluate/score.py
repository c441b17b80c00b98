"""Score a file of hypotheses, separately for each task and pair of languages.

Scoring needs nothing but the file of hypotheses, so a file can be copied or edited and scored without the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ossicle.errors import MissingPackageError, OssicleError
from ossicle.evaluate.bootstrap import RESAMPLES, Interval, intervals
from ossicle.evaluate.comet import CometOptions, comet
from ossicle.evaluate.failures import Failure, failures
from ossicle.evaluate.hypotheses import GroupKey, Hypothesis, grouped, read_hypotheses, task_name
from ossicle.evaluate.metrics import check_bleu, metrics_for
from ossicle.evaluate.open_asr import OPEN_ASR, OpenASR
from ossicle.evaluate.parts import Score
from ossicle.files import write_json
from ossicle.shards import WHOLE, Shard


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """Settings of scoring."""

    normalise: str = "basic"
    """Text normalisation before word and character errors: one of `ossicle.evaluate.normalise.NORMALISERS`, or
    ``open-asr`` (`ossicle.evaluate.open_asr`)."""
    spelling: Path | None = None
    """File normalizer.json of a Whisper checkpoint, for ``normalise="whisper"``."""
    leaderboard: Path | None = None
    """Clone of the Open ASR Leaderboard's repository, for ``normalise="open-asr"``."""
    resamples: int = RESAMPLES
    """Bootstrap resamples of the intervals; 0 computes no intervals."""
    seed: int = 0
    """Seed of the bootstrap."""
    comet: CometOptions | None = None
    """Settings of COMET for translations; None computes no COMET."""
    official: bool = False
    """Add the scorers of the paper's code (`ossicle.evaluate.official`)."""
    manifests: tuple[Path, ...] = ()
    """Manifests whose references replace those in the files of hypotheses. By default the files' own are used."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """Scores of one task in one pair of languages."""

    task: str
    language: str | None
    """Spoken language; None = not given."""
    target_language: str | None
    """Language of the answers: the spoken language if the file names no other."""
    n: int
    """Number of lines."""
    scores: dict[str, float]
    """Metric name -> percentage."""
    signatures: dict[str, str]
    """Metric name -> settings of the metric."""
    intervals: dict[str, Interval] = field(default_factory=dict)
    """Metric name -> 95% bootstrap interval; metrics without `Parts` and groups of a single unit have none."""
    units: str = ""
    """Resampled units, e.g. ``12 speakers``."""
    failures: list[Failure] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)
    """Metric name -> the reason why it could not be computed."""


@dataclass(frozen=True)
class ScoredGroup:
    """Lines of one task in one pair of languages, with their scores by metric name."""

    lines: list[Hypothesis]
    scores: dict[str, Score]
    errors: dict[str, str] = field(default_factory=dict)
    """Metric name -> the reason why it could not be computed."""
    failures: list[Failure] = field(default_factory=list)


def score(hypotheses_path: Path, options: ScoreOptions | None = None) -> list[Row]:
    """Return one row per (task, language, target language) of the file, in alphabetical order.

    A metric that cannot be computed is in ``errors`` of its row, and all others are computed.

    Raises:
        HypothesesError: the file is missing, empty or invalid, or a line has no references.
    """
    options = options or ScoreOptions()
    return [make_row(group, options) for group in score_groups(hypotheses_path, options)]


def score_groups(hypotheses_path: Path, options: ScoreOptions | None = None) -> list[ScoredGroup]:
    """Return the scored groups of lines behind the rows of `score`. Raises as `score`."""
    options = options or ScoreOptions()
    return score_lines(read_lines(hypotheses_path, options), options)


def read_lines(hypotheses_path: Path, options: ScoreOptions) -> list[Hypothesis]:
    """Return the lines of a file with the references of ``options``. Raises as `score`."""
    lines = read_hypotheses(hypotheses_path)
    if not options.manifests:
        return lines
    from ossicle.evaluate.references import with_references  # imports torch

    return with_references(lines, options.manifests)


def score_lines(lines: Iterable[Hypothesis], options: ScoreOptions, shard: Shard = WHOLE) -> list[ScoredGroup]:
    """Return the scored groups of ``lines``, in alphabetical order, of which ``shard`` has consecutive lines.

    A group without lines in this shard has no scores. Raises as `score`.
    """
    return [_score_group(group, options, shard) for group in grouped(lines).values()]


def make_row(group: ScoredGroup, options: ScoreOptions) -> Row:
    """Return the row of a group, with confidence intervals and failures."""
    found = group.scores
    task, language, target_language = group.lines[0].group
    units, description = resampling_units(group.lines)
    parts = {name: result.parts for name, result in found.items() if result.parts is not None}
    bounds = intervals(list(parts.values()), units, resamples=options.resamples, seed=options.seed)
    return Row(
        task=task,
        language=language or None,
        target_language=target_language or None,
        n=len(group.lines),
        scores={name: result.value for name, result in found.items()},
        signatures={name: result.signature for name, result in found.items()},
        intervals={name: bound for name, bound in zip(parts, bounds, strict=True) if bound is not None},
        units=description,
        failures=group.failures,
        errors=group.errors,
    )


def write_scores(hypotheses_path: Path, rows: Sequence[Row] | None = None, **more: Any) -> Path:
    """Write ``<name>.scores.json`` beside the hypotheses and return its path; score the file if ``rows`` is None.

    ``more`` is written beside the rows.
    """
    rows = score(hypotheses_path) if rows is None else rows
    path = hypotheses_path.with_suffix(".scores.json")
    write_json(path, {"hypotheses": hypotheses_path.name, "rows": [asdict(row) for row in rows], **more})
    return path


def resampling_units(lines: Sequence[Hypothesis]) -> tuple[list[str], str]:
    """Return the bootstrap unit of each line and a description, e.g. ``12 speakers``.

    Units are speakers if every line names one and there are at least two, otherwise utterances. Lines with the same id
    are one utterance, because questions about one recording are not independent.
    """
    speakers = [line.speaker for line in lines if line.speaker is not None]
    if len(speakers) == len(lines) and len(set(speakers)) > 1:
        return speakers, f"{len(set(speakers))} speakers"
    utterances = [line.id for line in lines]
    return utterances, f"{len(set(utterances))} utterances"


def check_metrics(groups: Iterable[GroupKey], options: ScoreOptions | None = None) -> list[str]:
    """Return a warning for each metric that cannot be computed for ``groups``, before anything is decoded.

    Raises `OssicleError` if the normalisation of ``options`` cannot be had.
    """
    found = []
    if options is not None and options.normalise == OPEN_ASR:
        OpenASR.load(options.leaderboard)
    for task, _, target in dict.fromkeys(groups):
        if "bleu" in metrics_for(task):
            try:
                check_bleu(target)
            except MissingPackageError as error:
                found.append(f"task {task} will have no BLEU. {error}")
    return list(dict.fromkeys(found))


def _score_group(group: list[Hypothesis], options: ScoreOptions, shard: Shard) -> ScoredGroup:
    """Score the lines of one group. A metric that fails is listed with its error, so that it never hides others."""
    task, language = task_name(group[0].task), group[0].group[2] or None
    metrics = metrics_for(
        task,
        normalise=options.normalise,
        language=language,
        tables=options.leaderboard if options.normalise == OPEN_ASR else options.spelling,
        official=options.official,
        references=[line.references for line in group],
    )
    lines = shard.stretch(group)
    if not lines:
        return ScoredGroup([], {})
    hypotheses, references = [line.hypothesis for line in lines], [line.references for line in lines]
    computations: dict[str, Callable[[], Score]] = {
        name: partial(metric, hypotheses, references, language) for name, metric in metrics.items()
    }
    if task == "st" and options.comet is not None:
        computations["comet"] = partial(comet, lines, options.comet)
    scores, errors = {}, {}
    for name, compute in computations.items():
        try:
            scores[name] = compute()
        except OssicleError as error:
            errors[name] = str(error)
        except Exception as error:  # a bug in one metric, or in its package, must not hide the others
            errors[name] = f"{type(error).__name__}: {error}"
    return ScoredGroup(lines, scores, errors, failures(lines))
