"""Collect what the page shows of a study, from its ``results.json`` and the files that it names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ossicle_lab.report import score_table
from ossicle_lab.report.curves import LossCurve, loss_chart
from ossicle_lab.report.failing import Failing
from ossicle_lab.report.figures import COLOURS, WIDE, ChartStyle, Line, Point, glyph, line_chart
from ossicle_lab.report.json_files import read_object
from ossicle_lab.report.names import column_title, lower_is_better, number, percent
from ossicle_lab.report.recordings import Recording, recordings
from ossicle_lab.report.token_map import token_map
from ossicle_lab.report.verdicts import Verdicts, arrange
from ossicle_lab.study.config import MODE_NAMES

RESULTS = "results.json"
HEAD_COLUMN = "normalised"
DODGE = 0.008
LAYER_TICKS = 9


class StudyView:
    """A study's results, arranged for the template. Raises `DataError` if the file is not the result of a study."""

    def __init__(self, folder: Path, *, count: int, prefix: str = "s1", audio_folders: Sequence[Path] = ()) -> None:
        path = folder / RESULTS
        self.folder, self.prefix = folder, prefix
        self.record: dict[str, Any] = read_object(path, "rows", "columns", "claims", "study", "config")
        self.title: str = self.record["study"]
        self.columns: list[str] = self.record["columns"]
        self.config: dict[str, Any] = self.record["config"]
        self.names = list(dict.fromkeys(row["name"] for row in self.record["rows"]))
        self.recordings: list[Recording] = recordings(
            self._shown_files(), count, self._tasks(), [folder, *audio_folders]
        )
        self.verdicts: Verdicts = arrange(self.record["claims"], self.config["claim"]["contrastive"], prefix)

    @property
    def key(self) -> list[tuple[str, int, str]]:
        """The legend of all charts: name, colour and marker of each row."""
        return [(name, self.look(name) % COLOURS, glyph(self.look(name))) for name in self.names]

    def look(self, name: str) -> int:
        """Return the number of a row's colour and marker: its place in the study's file."""
        return list(self.config["pretraining"]).index(name)

    def heading(self, column: str) -> str:
        """Return the title of a column."""
        return column_title(column)

    def lower_is_better(self, column: str) -> bool:
        """Return True if the column's metric is an error rate."""
        return lower_is_better(column)

    def tables(self) -> list[tuple[str, list[tuple[float, list[score_table.TableRow]]]]]:
        """Return each mode's title and, for each fraction, its rows."""
        return list(score_table.tables(self.record))

    def bound(self) -> list[str]:
        """Return the LLM's scores on the transcripts, by column; an empty list if they were not measured."""
        bound = self.record["bound"]
        return [] if bound is None else [number(bound[column]["mean"]) for column in self.columns]

    def beside_the_paper(self) -> list[dict[str, str]]:
        """Return the paper's rows, each with the study's scores for the same settings."""
        return score_table.beside_the_paper(self.record)

    def overview(self) -> list[Markup]:
        """Return the chart that begins the page, for wide screens and for narrow ones; none if the study has no rows.

        It shows one score of every row against the amount of fine-tuning data.
        """
        if not self.record["rows"]:
            return []
        column = HEAD_COLUMN if HEAD_COLUMN in self.columns else self.columns[0]
        lines, chart = self._against_data(column)
        better = chart.note or "higher is better"
        chart = replace(chart, title=f"{chart.title} against fine-tuning data", note=f"{better}; 95% intervals")
        return [
            line_chart(lines, replace(chart, size=WIDE, label_lines=True)),
            line_chart(lines, replace(chart, size=(360, 300))),
        ]

    def efficiency(self) -> list[Markup]:
        """Return a chart for each column: score against the share of the fine-tuning data."""
        columns = self._chart_columns() if len(self._fractions()) > 1 else []
        return [line_chart(*self._against_data(column)) for column in columns]

    def retrieval(self) -> list[Markup]:
        """Return charts of R@1 by layer, one for each direction."""
        rows: Mapping[str, list[dict[str, float]]] = self.record["alignment"]
        directions = (
            ("Speech to transcript, R@1", "speech_to_text_r1"),
            ("Transcript to speech, R@1", "text_to_speech_r1"),
        )
        charts = []
        for title, field in directions if rows else ():
            lines = [
                Line(name, self.look(name), [Point(row["layer"], row[field]) for row in layers])
                for name, layers in rows.items()
            ]
            layers = sorted({int(point.x) for line in lines for point in line.points})
            ticks = [(float(layer), str(layer)) for layer in layers[:: -(-len(layers) // LAYER_TICKS)]]
            charts.append(line_chart(lines, ChartStyle(title, "LLM layer (0 = input embeddings)", ticks, (0, 100))))
        return charts

    def tokens(self) -> tuple[str, list[Markup]]:
        """Return the transcript of one test utterance and a token alignment for each row that has one."""
        paths = {name: self.folder / path for name, path in self.record["tokens"].items()}
        records = {n: read_object(path) for n, path in paths.items() if path.is_file()}
        said = next((record["text"] for record in records.values()), "")
        return said, [token_map(name, record) for name, record in records.items()]

    def curves(self) -> list[Markup]:
        """Return the loss charts: one of stage 2, where all rows share a loss, and one of stage 1 for each row."""
        stages: dict[str, dict[str, str]] = self.record["curves"]

        def found(stage: str) -> list[LossCurve]:
            items = stages.get(stage, {}).items()
            return [LossCurve(name, self.look(name), self.folder / path) for name, path in items]

        charts = [loss_chart("Stage 2, all of the data", found("stage 2"))]
        charts += [loss_chart(f"Stage 1, {curve.name}", [curve]) for curve in found("stage 1")]
        return [chart for chart in charts if chart is not None]

    def failing(self) -> Failing:
        """Return how the answers of the shown runs fail."""
        return Failing(self._shown_files())

    def settings(self) -> list[dict[str, str]]:
        """Return the settings of each row under each mode, as text."""
        return [
            _settings_row(name, mode, setting, used)
            for name, setting in self.record["settings"].items()
            for mode, used in setting["used"].items()
        ]

    def _fractions(self) -> list[float]:
        return sorted({row["fraction"] for row in self.record["rows"] if row["mode"] == "steps"})

    def _against_data(self, column: str) -> tuple[list[Line], ChartStyle]:
        rows = [row for row in self.record["rows"] if row["mode"] == "steps"]
        ticks = [(math.log10(f), percent(f)) for f in self._fractions()]
        lines = [
            Line(name, self.look(name), [_point(r, column) for r in rows if r["name"] == name]) for name in self.names
        ]
        note = "lower is better" if lower_is_better(column) else ""
        return lines, ChartStyle(column_title(column), "share of the fine-tuning data", ticks, note=note, dodge=DODGE)

    def _shown_files(self) -> dict[str, Path]:
        """Return the hypotheses of each row's first seed, at the claim's fraction or the nearest one that was run."""
        wanted = self.config["claim"]["fraction"]
        found: dict[str, tuple[float, Path]] = {}
        for row in self.record["rows"]:
            distance = abs(row["fraction"] - wanted)
            if row["mode"] == "steps" and distance < found.get(row["name"], (math.inf, None))[0]:
                found[row["name"]] = (distance, self.folder / row["hypotheses"][0])
        return {name: path for name, (_, path) in found.items()}

    def _tasks(self) -> list[str]:
        return [*self.config["data"]["tasks"], *self.config["data"]["unseen"]]

    def _chart_columns(self) -> list[str]:
        """Return the trained tasks, the averages, and unseen translation. Other unseen tasks are in the average."""
        trained = [column for column in self.columns if column.partition(":")[0] in self.config["data"]["tasks"]]
        unseen = [
            c for c in self.columns if c in ("normalised", "unseen") or (c not in trained and c.startswith("st/"))
        ]
        return [column for column in [*trained, *unseen] if column != "qa:em"]


def _point(row: Mapping[str, Any], column: str) -> Point:
    figure = row["scores"][column]
    return Point(math.log10(row["fraction"]), figure["mean"], figure["low"], figure["high"])


def _settings_row(name: str, mode: str, setting: Mapping[str, Any], used: Mapping[str, Any] | None) -> dict[str, str]:
    cost = setting["cost_s_per_step"]
    trained = used if used and used["steps"] else None
    return {
        "name": name,
        "mode": MODE_NAMES[mode],
        "steps": f"{trained['steps']}" if trained else "–",
        "lr": f"{trained['lr']:g}" if trained else "–",
        "finetune_lr": f"{used['finetune_lr']:g}" if used else "–",
        "cost": "–" if cost is None else f"{cost:.2f}",
        "tried": str(len(setting["trials"])),
    }
