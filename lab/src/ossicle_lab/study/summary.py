"""Print the cells of a study before it runs, and its table and verdicts afterwards."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from ossicle.evaluate.tables import print_whole
from ossicle_lab.study.config import MODE_NAMES, MODES, StudyConfig
from ossicle_lab.study.interval import SET_SIGN, column_of
from ossicle_lab.study.normalised import NORMALISED

VERDICT_STYLES = {"holds": "green", "partly": "yellow", "fails": "red", "not tested": "dim"}


def describe(config: StudyConfig, console: Console) -> None:
    """Print the number of cells of each row and mode, and the steps of both stages."""
    table = Table(title=f"{config.name}, in {config.folder}", box=box.SIMPLE)
    table.add_column("pretraining", no_wrap=True)
    for title in ("seeds", *(f"cells, {MODE_NAMES[mode]}" for mode in MODES)):
        table.add_column(title, justify="right")
    total = 0
    for name in config.pretraining:
        seeds = len(config.seeds_of(name))
        cells = [seeds * len(config.fractions(mode)) for mode in MODES]
        total += sum(cells)
        table.add_row(name, str(seeds), *map(str, cells))
    print_whole(table, console)
    steps = ", ".join(f"{fraction:.3g} for {n} steps" for fraction, n in sorted(config.finetuning.steps.items()))
    console.print(f"at most {total} cells; stage 1: {config.stage1.steps} steps; stage 2 by fraction: {steps}")


def print_results(record: dict[str, Any], console: Console) -> None:
    """Print the table of each mode with the first metric of each task, then the verdicts."""
    tasks = record["config"]["data"]["tasks"]
    firsts = [column_of(task) for task in tasks]
    columns = [column for column in record["columns"] if column in (*firsts, NORMALISED, "unseen")]
    columns += [column for column in record["columns"] if SET_SIGN in column and _whole(column) in firsts]
    for mode in dict.fromkeys(row["mode"] for row in record["rows"]):
        table = Table(title=f"{MODE_NAMES[mode]}: mean ± sd over seeds", box=box.SIMPLE)
        table.add_column("pretraining", no_wrap=True)
        for title in ("data", "seeds", *columns):
            table.add_column(title, justify="right", no_wrap=True)
        for row in record["rows"]:
            if row["mode"] == mode:
                figures = [_figure(row["scores"][column]) for column in columns]
                table.add_row(row["name"], f"{row['fraction']:.3g}", str(len(row["seeds"])), *figures)
        print_whole(table, console)
    for claim in record["claims"]:
        style = VERDICT_STYLES[claim["verdict"]]
        console.print(
            f"[{style}]{claim['verdict']:>10}[/]  {claim['claim']} ({MODE_NAMES[claim['mode']]})",
            highlight=False,
            soft_wrap=True,
        )
        console.print(f"            {claim['figures']}", style="dim", highlight=False, soft_wrap=True)


def _whole(column: str) -> str:
    """Return the column of all test sets for a column of one test set."""
    task, _, metric = column.partition(":")
    return f"{task.partition(SET_SIGN)[0]}:{metric}"


def _figure(figure: dict[str, Any]) -> str:
    spread = "" if figure["sd"] is None else f" ± {figure['sd']:.1f}"
    return f"{figure['mean']:.1f}{spread}"
