"""`ossicle score`: files of hypotheses in; scores, differences and the normalised average out. No model is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from ossicle.evaluate.bootstrap import Paired
from ossicle.evaluate.compare import (
    Difference,
    NormalisedAverage,
    Spread,
    compare,
    normalised_average,
    normalised_interval,
    over_seeds,
)
from ossicle.evaluate.score import (
    Row,
    ScoreOptions,
    interval_text,
    languages_of,
    print_table,
    row_of,
    score,
    score_groups,
)
from ossicle.evaluate.show import print_whole


@dataclass(frozen=True)
class Results:
    """All that `ossicle score` found out. Files are named as they were given."""

    runs: dict[str, list[Row]]
    differences: dict[str, list[Difference]]
    """Each further file -> it minus the first."""
    spreads: list[Spread]
    normalised: dict[str, NormalisedAverage]
    """File -> its place between the reference runs."""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def rescore(
    files: Sequence[Path],
    options: ScoreOptions,
    *,
    seeds: bool = False,
    references: tuple[str, str] | None = None,
) -> Results:
    """Score every file; with several, compare each with the first, or with ``seeds`` give their mean and spread.

    ``references`` are the lower and upper run of the normalised average: a file, or the name (without folder and
    ending) of one of ``files``.

    Raises:
        ValueError: as `score`, `compare`, `over_seeds` and `normalised_average` say; or a file is given twice.
    """
    if len(set(files)) < len(files):
        raise ValueError("a file is given twice: name each run once")
    groups = {path: score_groups(path, options) for path in files}
    runs = {str(path): [row_of(group, options) for group in found] for path, found in groups.items()}
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
        spreads=over_seeds(list(runs.values())) if seeds else [],
        normalised=normalised,
    )


def print_scored(scored: Results, console: Console | None = None) -> None:
    """Prints a table for each file, then what sets the files apart."""
    console = console or Console()
    first = next(iter(scored.runs))
    for name, rows in scored.runs.items():
        _title(console, name)
        print_table(rows, console)
    for name, differences in scored.differences.items():
        _title(console, f"{name} minus {first}")
        _print_differences(differences, console)
    if scored.spreads:
        _title(console, f"over {scored.spreads[0].seeds} seeds")
        _print_spreads(scored.spreads, console)
    for name, average in scored.normalised.items():
        tasks = ", ".join(f"{task} {value:.1f}" for task, value in average.tasks.items())
        bound = f", 95% interval {interval_text(average.interval)}" if average.interval else ""
        text = f"{name}: normalised average {average.value:.2f} ({tasks}){bound}"
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def _reference(name: str, files: Sequence[Path], runs: Mapping[str, list[Row]], options: ScoreOptions) -> list[Row]:
    named = [path for path in files if name in (str(path), path.stem)]
    if len(named) > 1:
        raise ValueError(f"{name!r} may be {' or '.join(map(str, named))}: give the path")
    if named:
        return runs[str(named[0])]
    if not Path(name).is_file():
        known = ", ".join(path.stem for path in files)
        raise ValueError(f"reference run {name!r} is no file, and none of the files given is called so: {known}")
    return score(Path(name), options)


def _title(console: Console, text: str) -> None:
    console.print(text, style="bold", markup=False, highlight=False, soft_wrap=True)


def _print_differences(differences: Sequence[Difference], console: Console) -> None:
    table = Table("task", "language", box=box.SIMPLE)
    for heading in ("n", "metric", "difference", "95% interval", "p"):
        table.add_column(heading, justify="left" if heading == "metric" else "right")
    for found in differences:
        head = (found.task, languages_of(found.language, found.target_language), str(found.n))
        for name, pair in found.metrics.items():
            table.add_row(*head, name, f"{pair.difference:+.2f}", interval_text(pair.interval), _p(pair))
            head = ("", "", "")
        table.add_section()
    print_whole(table, console)
    for note in dict.fromkeys(f"paired bootstrap over {found.units}" for found in differences):
        console.print(note, style="dim", highlight=False)
    if left_out := sum(found.only_in_one for found in differences):
        console.print(f"{left_out} lines are in one of the two files only, and left out", style="dim", highlight=False)


def _print_spreads(spreads: Sequence[Spread], console: Console) -> None:
    table = Table("task", "language", "metric", box=box.SIMPLE)
    table.add_column("mean ± sd", justify="right")
    for spread in spreads:
        languages = languages_of(spread.language, spread.target_language)
        table.add_row(spread.task, languages, spread.metric, f"{spread.mean:.2f} ± {spread.sd:.2f}")
    print_whole(table, console)


def _p(pair: Paired) -> str:
    return "" if pair.p is None else f"{pair.p:.3f}"
