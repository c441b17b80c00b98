"""What the page shows of a study: from its ``results.json`` and the files that it names, as plain values and charts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ossicle_lab.report.charts import LOOKS, Axes, Line, Point, chart, marker_path
from ossicle_lab.report.curves import LossCurve, loss_chart
from ossicle_lab.report.failing import Failing
from ossicle_lab.report.paper import PAPER
from ossicle_lab.report.recordings import Recording, recordings
from ossicle_lab.report.token_map import token_map
from ossicle_lab.study.config import MODE_NAMES

RESULTS = "results.json"
BESIDE = ("asr:wer", "st/de:bleu", "qa:f1", "normalised", "unseen")
"""Columns that stand beside the paper's."""
DODGE = 2.5
LOWER = ("wer", "cer")
TITLES = {
    "asr:wer": "Recognition, WER",
    "qa:f1": "Questions, F1",
    "qa:em": "Questions, exact",
    "normalised": "Normalised average",
    "unseen": "Unseen tasks, mean",
}
LANGUAGES = {"de": "German", "es": "Spanish", "fr": "French", "it": "Italian"}
MODE_TITLES = {
    "steps": "the same number of steps of stage 1",
    "compute": "the same time in stage 1",
    "chosen": "the length of stage 1 that did best on the development split",
}


@dataclass(frozen=True)
class Cell:
    """A figure of the table, in words."""

    value: str
    spread: str
    interval: str
    best: bool


class StudyView:
    """A study's results, arranged for the template. Raises `ValueError` for a file that is none."""

    def __init__(self, folder: Path, *, count: int) -> None:
        path = folder / RESULTS
        self.folder = folder
        self.record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not {"rows", "columns", "claims"} <= self.record.keys():
            raise ValueError(f"{path}: is not the result of a study; ossicle study writes one")
        self.title: str = self.record["study"]
        self.columns: list[str] = self.record["columns"]
        self.config: dict[str, Any] = self.record["config"]
        self.names = list(dict.fromkeys(row["name"] for row in self.record["rows"]))
        self.recordings: list[Recording] = recordings(self._shown_files(), count, self._tasks())

    @property
    def key(self) -> list[tuple[str, int, str]]:
        """The legend of all charts: name, colour, marker."""
        return [(name, self.look(name) % LOOKS, marker_path(self.look(name))) for name in self.names]

    def look(self, name: str) -> int:
        """Number of a row's colour and marker, by its place in the study's file."""
        return list(self.config["pretraining"]).index(name)

    def heading(self, column: str) -> str:
        """A column in words."""
        return column_title(column)

    def lower_is_better(self, column: str) -> bool:
        """Whether it counts errors."""
        return column.rpartition(":")[2] in LOWER

    def tables(self) -> Iterator[tuple[str, list[tuple[float, list[tuple[str, int, list[Cell]]]]]]]:
        """For each mode: its title, and for each fraction the rows (name, seeds, cells)."""
        for mode in dict.fromkeys(row["mode"] for row in self.record["rows"]):
            rows = [row for row in self.record["rows"] if row["mode"] == mode]
            fractions = sorted({row["fraction"] for row in rows})
            yield MODE_TITLES[mode], [(f, list(self._rows(rows, f))) for f in fractions]

    def bound(self) -> list[str]:
        """What the LLM scores on the transcripts, by column; empty where it was not measured."""
        bound = self.record["bound"]
        return [] if bound is None else [f"{bound[column]['mean']:.1f}" for column in self.columns]

    def beside_the_paper(self) -> list[dict[str, str]]:
        """The paper's rows with ours, where the study has one that does the same."""
        rows = {(row["name"], row["fraction"]): row["scores"] for row in self.record["rows"] if row["mode"] == "steps"}
        shown = []
        for row in PAPER:
            scores = rows.get(row.ours) if row.ours else None
            ours = {column: number(scores[column]["mean"]) for column in self.columns} if scores else {}
            name = f"{row.ours[0]}, {percent(row.ours[1])}" if row.ours and scores else ""
            values = {f"our_{c}": ours.get(c, "–") for c in BESIDE}
            shown.append({**{k: v for k, v in vars(row).items() if k != "ours"}, "our_name": name, **values})
        return shown

    def verdicts(self) -> list[tuple[str, list[dict[str, str]]]]:
        """Findings by mode."""
        claims = self.record["claims"]
        modes = dict.fromkeys(claim["mode"] for claim in claims)
        return [(MODE_TITLES[mode], [claim for claim in claims if claim["mode"] == mode]) for mode in modes]

    def efficiency(self) -> list[Markup]:
        """A chart for each column: fraction of the fine-tuning data against the score, with intervals."""
        rows = [row for row in self.record["rows"] if row["mode"] == "steps"]
        fractions = sorted({row["fraction"] for row in rows})
        ticks = [(math.log10(f), percent(f)) for f in fractions]
        charts = []
        for column in self._chart_columns() if len(fractions) > 1 else ():
            lines = [
                Line(name, self.look(name), [_point(r, column) for r in rows if r["name"] == name])
                for name in self.names
            ]
            note = "lower is better" if self.lower_is_better(column) else ""
            charts.append(chart(lines, Axes(column_title(column), "fine-tuning data", ticks, note=note, dodge=DODGE)))
        return charts

    def retrieval(self) -> list[Markup]:
        """R@1 by layer in both directions."""
        rows: Mapping[str, list[dict[str, float]]] = self.record["alignment"]
        directions = (
            ("Speech finds its transcript, R@1", "speech_to_text_r1"),
            ("A transcript finds its speech, R@1", "text_to_speech_r1"),
        )
        charts = []
        for title, field in directions if rows else ():
            lines = [
                Line(name, self.look(name), [Point(row["layer"], row[field]) for row in layers])
                for name, layers in rows.items()
            ]
            layers = sorted({int(point.x) for line in lines for point in line.points})
            ticks = [(float(layer), str(layer)) for layer in layers[:: -(-len(layers) // 9)]]
            charts.append(chart(lines, Axes(title, "LLM layer (0: embeddings)", ticks, (0, 100))))
        return charts

    def tokens(self) -> tuple[str, list[Markup]]:
        """What was said in the utterance that the pictures are about, and one picture for each row."""
        paths = {name: self.folder / path for name, path in self.record["tokens"].items()}
        records = {n: json.loads(path.read_text(encoding="utf-8")) for n, path in paths.items() if path.is_file()}
        said = next((record["text"] for record in records.values()), "")
        return said, [token_map(name, self.look(name), record) for name, record in records.items()]

    def curves(self) -> list[Markup]:
        """Stage 2 in one chart, as all share its loss; stage 1 in one for each row, as none do."""
        stages: dict[str, dict[str, str]] = self.record["curves"]

        def found(stage: str) -> list[LossCurve]:
            items = stages.get(stage, {}).items()
            return [LossCurve(name, self.look(name), self.folder / path) for name, path in items]

        second = found("stage 2")
        charts = [loss_chart("Stage 2, all of the data", second)] if second else []
        return charts + [loss_chart(f"Stage 1, {curve.name}", [curve]) for curve in found("stage 1")]

    def failing(self) -> Failing:
        """How answers of the shown runs fail."""
        return Failing(self._shown_files())

    def settings(self) -> list[dict[str, str]]:
        """What each row was trained with, and what was tried."""
        shown = []
        for name, setting in self.record["settings"].items():
            for mode, used in setting["used"].items():
                cost = setting["cost_s_per_step"]
                trained = used and used["steps"]
                shown.append(
                    {
                        "name": name,
                        "mode": MODE_NAMES[mode],
                        "steps": f"{used['steps']}" if trained else "–",
                        "lr": f"{used['lr']:g}" if trained else "–",
                        "finetune_lr": "–" if not used else f"{used['finetune_lr']:g}",
                        "cost": "–" if cost is None else f"{cost:.2f}",
                        "tried": str(len(setting["trials"])),
                    }
                )
        return shown

    def _rows(self, rows: Sequence[dict[str, Any]], fraction: float) -> Iterator[tuple[str, int, list[Cell]]]:
        here = [row for row in rows if row["fraction"] == fraction]
        best = {
            column: (min if self.lower_is_better(column) else max)(row["scores"][column]["mean"] for row in here)
            for column in self.columns
        }
        for row in here:
            cells = [
                _cell(
                    row["scores"][column],
                    best[column],
                    plain=all(r["scores"][column]["mean"] == best[column] for r in here),
                )
                for column in self.columns
            ]
            yield row["name"], len(row["seeds"]), cells

    def _shown_files(self) -> dict[str, Path]:
        """Hypotheses of the first seed of each row at the claim's fraction, or the nearest that there is."""
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
        """The trained tasks, the unseen ones together, and unseen translation; single others would be too many."""
        trained = [column for column in self.columns if column.partition(":")[0] in self.config["data"]["tasks"]]
        unseen = [
            c for c in self.columns if c in ("normalised", "unseen") or (c not in trained and c.startswith("st/"))
        ]
        return [column for column in [*trained, *unseen] if column != "qa:em"]


def column_title(column: str) -> str:
    """``st/de:bleu`` -> ``German, BLEU``."""
    if column in TITLES:
        return TITLES[column]
    task, _, metric = column.partition(":")
    kind, _, language = task.partition("/")
    names = {"bleu": "BLEU", "em": "exact", "f1": "F1", "wer": "WER"}
    what = LANGUAGES.get(language, language) if kind == "st" else task.replace("_", " ").capitalize()
    return f"{what}, {names.get(metric, metric)}"


def number(value: float) -> str:
    """-1.25 -> ``−1.2``, with the minus sign of the paper's figures."""
    return f"{value:.1f}".replace("-", "−")


def percent(fraction: float) -> str:
    """0.1 -> ``10%``."""
    return f"{100 * fraction:.3g}%"


def _point(row: Mapping[str, Any], column: str) -> Point:
    figure = row["scores"][column]
    return Point(math.log10(row["fraction"]), figure["mean"], figure["low"], figure["high"])


def _cell(figure: Mapping[str, Any], best: float, *, plain: bool) -> Cell:
    spread = "" if figure["sd"] is None else f"± {figure['sd']:.1f}"
    interval = f"{number(figure['low'])} to {number(figure['high'])}"
    return Cell(number(figure["mean"]), spread, interval, best=not plain and figure["mean"] == best)
