"""Print the figures of `ossicle.corpora.stats` as tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

BAR_CHARACTERS = 24


def print_stats(found: Mapping[str, Any], console: Console | None = None) -> None:
    """Print a table with one column per manifest, then histograms of the durations, then the leaks."""
    console = console or Console()
    manifests: dict[str, Any] = found["manifests"]
    table = Table("", box=box.SIMPLE)
    for name in _short(manifests):
        table.add_column(name, justify="right", overflow="fold")
    rows = [_rows(figures) for figures in manifests.values()]
    for title in rows[0]:
        table.add_row(title, *(escape(row[title]) for row in rows))
    console.print(table)
    console.print(_histograms(manifests))
    for leak in found["leaks"]:
        text = f"{leak['recordings']} recordings of {leak['of']} share their {leak['what']} with {leak['in']}"
        console.print(f"[yellow]leak:[/] {escape(text)} (first: {escape(leak['first'])})", soft_wrap=True)
    if len(manifests) > 1 and not found["leaks"]:
        console.print("no leaks: the splits share no audio, text or speaker")


def _short(manifests: Mapping[str, Any]) -> list[str]:
    """Return the names of the files, with their folders if two names are equal."""
    paths = [Path(name) for name in manifests]
    same = len({path.name for path in paths}) < len(paths)
    return [escape(f"{path.parent.name}/{path.name}" if same else path.name) for path in paths]


def _rows(figures: Mapping[str, Any]) -> dict[str, str]:
    duration_s, rate = figures["duration_s"], figures["words_per_s"]
    speakers = str(figures["speakers"])
    if figures["without_speaker"]:
        speakers += f" ({figures['without_speaker']} without)"
    return {
        "lines": str(figures["lines"]),
        "recordings": str(figures["recordings"]),
        "hours": f"{figures['speech_s'] / 3600:.2f}",
        "seconds: mean": _number(duration_s, "mean"),
        "seconds: 0, 50, 95, 100%": ", ".join(_number(duration_s, key) for key in ("0", "50", "95", "100")),
        "words/s: mean": _number(rate, "mean"),
        "words/s: 5, 50, 95%": ", ".join(_number(rate, key) for key in ("5", "50", "95")),
        "slowest": figures["slowest"] or "-",
        "fastest": figures["fastest"] or "-",
        "speakers": speakers,
        "languages": _counts(figures["languages"]),
        "tasks": _counts(figures["tasks"]),
        "without text": str(figures["without_text"]),
        "unreadable": str(figures["unreadable"]),
        **{f"repeated {what}": _repeated(figures["duplicates"][what]) for what in ("ids", "texts", "audio")},
    }


def _number(values: Mapping[str, float], key: str) -> str:
    return f"{values[key]:.2f}" if key in values else "-"


def _counts(counts: Mapping[str, int], most: int = 6) -> str:
    shown = [f"{name} {count}" for name, count in list(counts.items())[:most]]
    return ", ".join(shown + ([f"{len(counts) - most} more"] if len(counts) > most else []))


def _repeated(found: Mapping[str, Any]) -> str:
    return f"{found['count']} ({found['first']})" if found["count"] else "0"


def _histograms(manifests: Mapping[str, Any]) -> Table:
    table = Table("seconds", box=box.SIMPLE)
    for name in _short(manifests):
        table.add_column(name)
    edges = list(next(iter(manifests.values()))["histogram_s"])
    for edge, above in zip(edges, (*edges[1:], ""), strict=True):
        counts = [figures["histogram_s"][edge] for figures in manifests.values()]
        if any(counts):
            most = [max(figures["histogram_s"].values()) for figures in manifests.values()]
            cells = [_bar(count, top) for count, top in zip(counts, most, strict=True)]
            table.add_row(f"{edge}-{above}" if above else f"{edge}-", *cells)
    return table


def _bar(count: int, most: int) -> str:
    return f"{'█' * max(round(BAR_CHARACTERS * count / most), 1 if count else 0)} {count}" if most else ""
