"""Arrange a study's scores as tables: every score by mode and fraction, and the rows that the paper has too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ossicle_lab.report.names import MODE_TITLES, lower_is_better, number, percent
from ossicle_lab.report.paper import PAPER

COMPARED = ("asr:wer", "st/de:bleu", "qa:f1", "normalised", "unseen")
"""Columns that are shown beside the paper's figures."""


@dataclass(frozen=True)
class Cell:
    """A score of the table as text."""

    value: str
    spread: str
    interval: str
    best: bool


@dataclass(frozen=True)
class TableRow:
    """One pretraining at one fraction."""

    name: str
    seeds: int
    cells: list[Cell]


def tables(record: Mapping[str, Any]) -> Iterator[tuple[str, list[tuple[float, list[TableRow]]]]]:
    """Yield each mode's title and, for each fraction, its rows."""
    for mode in dict.fromkeys(row["mode"] for row in record["rows"]):
        rows = [row for row in record["rows"] if row["mode"] == mode]
        fractions = sorted({row["fraction"] for row in rows})
        yield MODE_TITLES[mode], [(f, _rows(rows, f, record["columns"])) for f in fractions]


def beside_the_paper(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the paper's rows, each with the scores of the study's row that has the same settings, if there is one."""
    rows = {(row["name"], row["fraction"]): row["scores"] for row in record["rows"] if row["mode"] == "steps"}
    shown = []
    for row in PAPER:
        scores = rows.get(row.ours) if row.ours else None
        ours = {column: number(scores[column]["mean"]) for column in record["columns"]} if scores else {}
        name = f"{row.ours[0]}, {percent(row.ours[1])}" if row.ours and scores else ""
        values = {f"our_{column}": ours.get(column, "–") for column in COMPARED}
        shown.append({**{k: v for k, v in vars(row).items() if k != "ours"}, "our_name": name, **values})
    return shown


def _rows(rows: Sequence[Mapping[str, Any]], fraction: float, columns: Sequence[str]) -> list[TableRow]:
    here = [row for row in rows if row["fraction"] == fraction]
    means = {column: [row["scores"][column]["mean"] for row in here] for column in columns}
    # where all rows are equal, none is marked as the best
    best = {
        column: (min if lower_is_better(column) else max)(values) if len(set(values)) > 1 else None
        for column, values in means.items()
    }
    return [
        TableRow(row["name"], len(row["seeds"]), [_cell(row["scores"][column], best[column]) for column in columns])
        for row in here
    ]


def _cell(figure: Mapping[str, Any], best: float | None) -> Cell:
    spread = "" if figure["sd"] is None else f"± {figure['sd']:.1f}"
    interval = f"{number(figure['low'])} to {number(figure['high'])}"
    return Cell(number(figure["mean"]), spread, interval, best=figure["mean"] == best)
