"""Score several files of hypotheses and compare them. No model is needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ossicle.errors import ConfigError
from ossicle.evaluate.compare import (
    Difference,
    NormalisedAverage,
    Spread,
    compare,
    normalised_average,
    normalised_interval,
    spread_over_seeds,
)
from ossicle.evaluate.hypotheses import check_exists
from ossicle.evaluate.score import Row, ScoredGroup, ScoreOptions, make_row, score, score_groups

GroupsOf = Callable[[Path, ScoreOptions], list[ScoredGroup]]
"""Function that returns the scored groups of a file, such as `ossicle.evaluate.score.score_groups`."""


@dataclass(frozen=True)
class Results:
    """Results of `rescore`. Files have the names under which they were given."""

    runs: dict[str, list[Row]]
    """File -> its scores."""
    differences: dict[str, list[Difference]]
    """Further file -> its differences from the first file."""
    spreads: list[Spread]
    """Mean and standard deviation over the files, if they are seeds of one run."""
    normalised: dict[str, NormalisedAverage]
    """File -> its normalised average, if reference runs are given."""

    def to_json(self) -> dict[str, Any]:
        """Return the results as plain values."""
        return asdict(self)


def check_runs(files: Sequence[Path], *, seeds: bool = False, references: tuple[str, str] | None = None) -> None:
    """Check the arguments of `rescore` before files are scored, which can take long. Raises as it does."""
    if len({path.resolve() for path in files}) < len(files):
        raise ConfigError("a file is given twice: name each run once")
    for path in files:
        check_exists(path)
    if seeds:
        spread_over_seeds([[] for _ in files])  # refuses a single file
    for name in references or ():
        _reference_path(name, files)


def rescore(
    files: Sequence[Path],
    options: ScoreOptions,
    *,
    seeds: bool = False,
    references: tuple[str, str] | None = None,
    groups_of: GroupsOf = score_groups,
) -> Results:
    """Score every file, and compare each further file with the first.

    Args:
        files: files of hypotheses.
        options: settings of scoring.
        seeds: compute mean and standard deviation over the files instead of differences.
        references: lower and upper run of the normalised average. Each is a file, or the stem of one of ``files``.
        groups_of: how the groups of ``files`` are scored.

    Raises:
        ConfigError: a file is given twice, a reference run is not found, or ``seeds`` has a single file.
        HypothesesError: a file is invalid, or the files cannot be compared.
    """
    check_runs(files, seeds=seeds, references=references)
    groups = {path: groups_of(path, options) for path in files}
    runs = {str(path): [make_row(group, options) for group in found] for path, found in groups.items()}
    normalised = {}
    if references is not None:
        bounds = [_reference(name, files, runs, options) for name in references]
        for path, found in groups.items():
            average = normalised_average(runs[str(path)], *bounds)
            interval = normalised_interval(found, average, (bounds[0], bounds[1]), options)
            normalised[str(path)] = replace(average, interval=interval)
    further = [] if seeds else files[1:]
    return Results(
        runs=runs,
        differences={str(path): compare(groups[files[0]], groups[path], options) for path in further},
        spreads=spread_over_seeds(list(runs.values())) if seeds else [],
        normalised=normalised,
    )


def _reference(name: str, files: Sequence[Path], runs: Mapping[str, list[Row]], options: ScoreOptions) -> list[Row]:
    """Return the rows of a reference run, which is scored unless it is one of ``files``."""
    path = _reference_path(name, files)
    return runs[str(path)] if path in files else score(path, options)


def _reference_path(name: str, files: Sequence[Path]) -> Path:
    """Return the file of a reference run. Raises `ConfigError` if ``name`` is unknown or ambiguous."""
    named = [path for path in files if name in (str(path), path.stem)]
    if len(named) > 1:
        raise ConfigError(f"reference run {name!r} may be {' or '.join(map(str, named))}: give the path")
    if not named and not Path(name).is_file():
        known = ", ".join(path.stem for path in files)
        raise ConfigError(f"reference run {name!r} is neither a file nor one of {known}: give a path or one of these")
    return named[0] if named else Path(name)
