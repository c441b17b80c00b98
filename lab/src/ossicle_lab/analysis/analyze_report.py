"""Print the tables and draw the figures of `ossicle analyze`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from ossicle.evaluate.tables import print_whole
from ossicle.inspect.alignment import AlignmentRow
from ossicle_lab.analysis.components import Components
from ossicle_lab.analysis.plots import plot_retrieval_by_layer
from ossicle_lab.analysis.plots_analysis import (
    TokenAlignment,
    plot_alignment,
    plot_components,
    plot_geometry,
    plot_probes,
)

FORMATS = ("png", "svg")
RANKS = (1, 5, 10)


def draw(
    record: Mapping[str, Any],
    rows: Mapping[str, Sequence[AlignmentRow]],
    shown: Mapping[str, TokenAlignment],
    components: Mapping[str, Mapping[int, Components]],
    out: Path,
) -> None:
    """Write every figure to ``out`` as PNG and SVG."""
    for suffix in FORMATS:
        plot_retrieval_by_layer(rows, out / f"retrieval.{suffix}")
        plot_geometry({n: stage["layers"] for n, stage in record["stages"].items()}, out / f"geometry.{suffix}")
        plot_components(components, out / f"pca.{suffix}")
        if record["probes"]:
            plot_probes(record["probes"], list(record["stages"]), out / f"probes.{suffix}")
        for name, alignment in shown.items():
            plot_alignment(alignment, out / f"tokens-{_file_name(name)}.{suffix}")


def print_report(record: Mapping[str, Any], console: Console) -> None:
    """Print one table per stage and one for the probes."""
    for name, stage in record["stages"].items():
        print_whole(_layers(f"{name}: {record['utterances']} utterances", stage["layers"]), console)
    console.print(" = matched pairs, ≠ mismatched; retrieval: R@1/R@5/R@10 in %", style="dim", highlight=False)
    if record["probes"]:
        print_whole(_probes(record), console)
    for name, reason in record["probes_skipped"].items():
        console.print(f"no probe for {name}: {reason}", style="dim", markup=False, highlight=False, soft_wrap=True)
    left_out = ", ".join(f"{count} {reason}" for reason, count in record["left_out"].items() if count)
    if left_out:
        console.print(f"left out: {left_out}", style="dim", markup=False, highlight=False, soft_wrap=True)


def _layers(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title=title, box=box.SIMPLE, padding=(0, 1, 0, 0))
    heads = ("layer", "cos =", "≠", "Wass. =", "≠", "speech → text", "text → speech", "gap", "CKA")
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        recalls = [
            "/".join(f"{row[f'{direction}_r{k}']:.0f}" for k in RANKS)
            for direction in ("speech_to_text", "text_to_speech")
        ]
        numbers = [row[name] for name in ("matched", "mismatched", "wasserstein_matched", "wasserstein_mismatched")]
        table.add_row(str(row["layer"]), *map(_cell, numbers), *recalls, _cell(row["modality_gap"]), _cell(row["cka"]))
    return table


def _probes(record: Mapping[str, Any]) -> Table:
    """Return the accuracies, ± their standard deviation over folds, at the first, middle and last probed layer."""
    before, after = record["stages"]
    table = Table(title="Linear probes (classes): accuracy in %", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for head in ("field", "majority", "encoder", "layer", before, after, "transcript"):
        table.add_column(head, justify="left" if head == "field" else "right", no_wrap=True)
    for probe in record["probes"]:
        rows = probe["layers"]
        name = f"{probe['field']} ({len(probe['classes'])})"
        head = [name, f"{probe['majority']:.0f}", _percent(probe["encoder"])]
        for row in dict.fromkeys((0, len(rows) // 2, len(rows) - 1)):
            cells = [_percent(rows[row][name]) for name in ("before", "after", "transcript")]
            table.add_row(*head, str(rows[row]["layer"]), *cells)
            head = [""] * len(head)
        table.add_section()
    return table


def _percent(result: Mapping[str, float]) -> str:
    return f"{result['accuracy']:.0f} ± {result['sd']:.0f}"


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _file_name(utterance: str) -> str:
    """Return an id with characters that file names cannot contain replaced by underscores."""
    return re.sub(r"[^\w.-]+", "_", utterance)
