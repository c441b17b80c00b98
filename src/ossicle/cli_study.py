"""The commands that run a grid and show it. Thin, like `ossicle.cli`, which adds them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def study(
    recipe: Annotated[Path, typer.Argument(help="A study, e.g. recipes/lab/paper_table.yaml.", show_default=False)],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.field=value, e.g. seeds=[0,1]")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="The study's own smaller version, in a folder -quick.")
    ] = False,
    jobs: Annotated[int | None, typer.Option(help="Processes, one thread each; one per core if not said.")] = None,
    rerun_changed: Annotated[
        bool, typer.Option("--rerun-changed", help="Repeat the cells that a changed setting touches.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the file and list its cells; run nothing.")] = False,
) -> None:
    """Run a grid of pretrainings, fine-tuning fractions and seeds; the same command continues it."""
    from rich.console import Console

    from ossicle.study.config import load
    from ossicle.study.summary import describe, print_results

    config = load(recipe, overrides or (), quick=quick)
    if dry_run:
        describe(config, Console())
        return
    from ossicle.study.run import run_study

    record = run_study(config, processes=jobs, rerun_changed=rerun_changed)
    print_results(record, Console())
    print(f"{config.folder / 'results.json'}; show it with: ossicle report {config.folder}")


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of studies or runs.", show_default=False)],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: report.html in the first folder.")] = None,
    audio: Annotated[int, typer.Option(help="Recordings to include, about 15 kB each.")] = 6,
) -> None:
    """Make one self-contained HTML page of studies and runs: tables, curves, recordings, verdicts."""
    from ossicle.report.page import write_report

    print(write_report(runs, out or runs[0] / "report.html", recordings=audio))


def add_to(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(study)
    app.command()(report)
