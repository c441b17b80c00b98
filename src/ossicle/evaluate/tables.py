"""Print scores, differences and spreads as tables on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from ossicle.evaluate.bootstrap import Interval, Paired
from ossicle.evaluate.compare import Difference, Spread
from ossicle.evaluate.failures import LANGUAGE_HELP, can_identify_languages
from ossicle.evaluate.honesty import CASCADE, ERROR_RATES, OTHER_AUDIO, RECOGNISER, TEXT, Honesty
from ossicle.evaluate.rescore import Results
from ossicle.evaluate.score import Row

MAX_WIDTH = 400
"""Maximum width of a table, in characters."""


def print_whole(table: Table, console: Console) -> None:
    """Print ``table`` at the width it needs, because a wrapped line is easier to read than a truncated figure."""
    width = Measurement.get(console, console.options.update(max_width=MAX_WIDTH), table).maximum
    given = console.width
    console.width = max(given, width)
    try:
        console.print(table)
    finally:
        console.width = given


def print_table(rows: Sequence[Row], console: Console | None = None) -> None:
    """Print the scores, one metric per line, followed by failure rates and the signature of each metric."""
    table = Table("task", "language", box=box.SIMPLE)
    table.add_column("n", justify="right")
    table.add_column("metric")
    table.add_column("score", justify="right")
    table.add_column("95% interval", justify="right")
    for row in rows:
        head = (escape(row.task), escape(language_label(row.language, row.target_language)), str(row.n))
        for name, value in row.scores.items():
            table.add_row(*head, escape(name), f"{value:.2f}", format_interval(row.intervals.get(name)))
            head = ("", "", "")
        table.add_section()
    console = console or Console()
    print_whole(table, console)
    for note in _notes(rows):
        console.print(note, style="dim", markup=False, highlight=False, soft_wrap=True)


def print_results(results: Results, console: Console | None = None) -> None:
    """Print a table for each file, then the comparisons between the files."""
    console = console or Console()
    first = next(iter(results.runs))
    for name, rows in results.runs.items():
        _print_title(console, name)
        print_table(rows, console)
    for name, differences in results.differences.items():
        _print_title(console, f"{name} minus {first}")
        _print_differences(differences, console)
    if results.spreads:
        _print_title(console, f"over {results.spreads[0].seeds} seeds")
        _print_spreads(results.spreads, console)
    for name, average in results.normalised.items():
        tasks = ", ".join(f"{task} {value:.1f}" for task, value in average.tasks.items())
        bound = f", 95% interval {format_interval(average.interval)}" if average.interval else ""
        text = f"{name}: normalised average {average.value:.2f} ({tasks}){bound}"
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def print_honesty(rows: Sequence[Honesty], console: Console | None = None) -> None:
    """Print the model beside its cascade, its text-only bound and its score with other audio, then what follows."""
    console = console or Console()
    count, of = sum(row.n for row in rows), sum(row.of for row in rows)
    which = f"{count} of {of} answers, a seeded subset" if count < of else f"all {of} answers"
    _print_title(console, f"honesty: every column has the same lines ({which})")
    table = Table("task", "language", box=box.SIMPLE)
    for heading in ("n", "metric", "speech", *COLUMNS.values(), "other minus speech", "uses audio"):
        table.add_column(heading, justify="left" if heading in ("metric", "uses audio") else "right")
    for row in rows:
        languages = escape(language_label(row.language, row.target_language))
        scores = [f"{row.scores[kind]:.2f}" if kind in row.scores else "–" for kind in COLUMNS]
        cells = [str(row.n), row.metric, f"{row.speech:.2f}", *scores, _with_interval(row.other_minus_speech)]
        table.add_row(escape(row.task), languages, *cells, VERDICTS[row.ignores_audio])
    print_whole(table, console)
    for note in _honesty_notes(rows):
        console.print(note, style="dim", markup=False, highlight=False, soft_wrap=True)
    for row in rows:
        if row.ignores_audio:
            console.print(_warning(row), style="yellow", markup=False, highlight=False, soft_wrap=True)


COLUMNS = {
    TEXT: "transcript",
    CASCADE: "cascade",
    RECOGNISER: "recogniser",
    OTHER_AUDIO: "other audio",
}
VERDICTS = {True: "NO", False: "yes", None: "unknown"}


HONESTY_HELP = (
    "transcript: the LLM reads what was said (bound); cascade: it reads what the encoder's recogniser hears; "
    "other audio: the same instructions with the audio of other utterances"
)


def _with_interval(pair: Paired | None) -> str:
    if pair is None:
        return ""
    bounds = f" ({pair.interval.low:+.2f} – {pair.interval.high:+.2f})" if pair.interval else ""
    return f"{pair.difference:+.2f}{bounds}"


def _honesty_notes(rows: Sequence[Honesty]) -> list[str]:
    units = dict.fromkeys(row.units for row in rows if row.units)
    notes = [HONESTY_HELP, *(f"other minus speech: 95% interval, paired bootstrap over {unit}" for unit in units)]
    kinds: dict[str, list[str]] = {}
    for row in rows:
        for kind, reason in row.missing.items():
            known = kinds.setdefault(reason, [])
            known += [COLUMNS[kind]] * (COLUMNS[kind] not in known)
    return notes + [f"no {' and no '.join(names)}: {reason}" for reason, names in kinds.items()]


def _warning(row: Honesty) -> str:
    better = "lower" if row.metric in ERROR_RATES else "higher"
    return (
        f"warning: {row.task} {language_label(row.language, row.target_language)}: the model ignores its audio, as far "
        f"as {row.n} lines show: with the audio of other utterances its {row.metric} is {row.scores[OTHER_AUDIO]:.2f}, "
        f"not clearly worse than {row.speech:.2f} ({better} is better)"
    )


def language_label(spoken: str | None, target: str | None) -> str:
    """Return ``en``, or ``en → de`` if the answers are in another language."""
    return f"{spoken or '?'} → {target}" if target not in (None, spoken) else spoken or "?"


def format_interval(interval: Interval | None) -> str:
    """Return ``12.30 – 14.50``, or an empty string for None."""
    return "" if interval is None else f"{interval.low:.2f} – {interval.high:.2f}"


def describe_errors(rows: Iterable[Row]) -> str:
    """Return a line for each metric that could not be computed, or an empty string."""
    return "\n".join(
        f"{row.task} {language_label(row.language, row.target_language)}: no {name}: {reason}"
        for row in rows
        for name, reason in row.errors.items()
    )


def _notes(rows: Sequence[Row]) -> list[str]:
    notes = []
    for row in rows:
        found = [f"{failure.name} {failure.rate:.1f}%" for failure in row.failures if failure.count]
        if found:
            languages = language_label(row.language, row.target_language)
            notes.append(f"failures, {row.task} {languages}: {', '.join(found)}")
    units = dict.fromkeys(row.units for row in rows if row.intervals)
    notes += [f"intervals: bootstrap over {unit}" for unit in units]
    if not can_identify_languages() and any(row.target_language for row in rows):
        notes.append(LANGUAGE_HELP)
    signatures = dict.fromkeys(item for row in rows for item in row.signatures.items())
    return notes + [f"{name}: {signature}" for name, signature in signatures if "/" not in name]


def _print_title(console: Console, text: str) -> None:
    console.print(text, style="bold", markup=False, highlight=False, soft_wrap=True)


def _print_differences(differences: Sequence[Difference], console: Console) -> None:
    table = Table("task", "language", box=box.SIMPLE)
    for heading in ("n", "metric", "difference", "95% interval", "p"):
        table.add_column(heading, justify="left" if heading == "metric" else "right")
    for found in differences:
        head = (escape(found.task), escape(language_label(found.language, found.target_language)), str(found.n))
        for name, pair in found.metrics.items():
            table.add_row(
                *head, escape(name), f"{pair.difference:+.2f}", format_interval(pair.interval), _format_p(pair)
            )
            head = ("", "", "")
        table.add_section()
    print_whole(table, console)
    for note in dict.fromkeys(f"paired bootstrap over {found.units}" for found in differences):
        console.print(note, style="dim", highlight=False)
    if left_out := sum(found.only_in_one for found in differences):
        console.print(f"{left_out} lines are in only one of the two files and left out", style="dim", highlight=False)


def _print_spreads(spreads: Sequence[Spread], console: Console) -> None:
    table = Table("task", "language", "metric", box=box.SIMPLE)
    table.add_column("mean ± sd", justify="right")
    for spread in spreads:
        languages = escape(language_label(spread.language, spread.target_language))
        table.add_row(escape(spread.task), languages, escape(spread.metric), f"{spread.mean:.2f} ± {spread.sd:.2f}")
    print_whole(table, console)


def _format_p(pair: Paired) -> str:
    return "" if pair.p is None else f"{pair.p:.3f}"
