"""The commands of the laboratory. `ossicle` finds them by entry points; each imports what it needs when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    quick: Annotated[bool, typer.Option("--quick", help="A smaller corpus and fewer steps: under 4 minutes.")] = False,
    out: Annotated[Path, typer.Option(help="Where everything goes; a second call continues there.")] = Path(
        "runs/demo"
    ),
) -> None:
    """The whole method on generated speech: both stages, two reference runs, a table, plots and examples."""
    from ossicle_lab.demo.run import FULL, QUICK, run

    run(out, QUICK if quick else FULL)


def analyze(  # noqa: PLR0913 - each parameter is an option of the command
    checkpoint: Annotated[Path, typer.Argument(help="A run's folder or a checkpoint.", show_default=False)],
    manifest: Annotated[Path, typer.Argument(help="Manifest (JSONL) with transcripts.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Folder; default: CHECKPOINT/analysis/MANIFEST.")] = None,
    before: Annotated[
        Path | None, typer.Option(help="Checkpoint to compare with; default: the untrained projector.")
    ] = None,
    show: Annotated[
        list[str] | None, typer.Option(help="Draw the token alignment of this utterance; may be repeated. Default: 3.")
    ] = None,
    limit: Annotated[int, typer.Option(min=2, help="Most utterances; a seeded draw of more.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the draw and of the untrained projector.")] = 0,
    batch_size: Annotated[int, typer.Option(min=2, help="Utterances read together.")] = 16,
    bos: Annotated[bool, typer.Option("--bos", help="Begin-of-sequence token before speech and text.")] = False,
    probes: Annotated[bool, typer.Option(help="Linear probes (scikit-learn).")] = True,
    skip_broken: Annotated[bool, typer.Option(help="Count and list unreadable files instead of stopping.")] = False,
) -> None:
    """Show how speech lies to its transcripts inside the LLM, layer by layer, and what a probe reads from it."""
    from ossicle_lab.analysis.analyze import AnalyzeOptions
    from ossicle_lab.analysis.analyze import analyze as run

    options = AnalyzeOptions(limit, seed, batch_size, tuple(show or ()), before, bos, probes, skip_broken)
    run(checkpoint, manifest, out or checkpoint / "analysis" / manifest.stem, options)


def study(
    recipe: Annotated[Path, typer.Argument(help="A study, e.g. lab/paper_table.", show_default=False)],
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

    from ossicle_lab.study.config import load
    from ossicle_lab.study.summary import describe, print_results

    config = load(recipe, overrides or (), quick=quick)
    if dry_run:
        describe(config, Console())
        return
    from ossicle_lab.study.run import run_study

    record = run_study(config, processes=jobs, rerun_changed=rerun_changed)
    print_results(record, Console())
    print(f"{config.folder / 'results.json'}; show it with: ossicle report {config.folder}")


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of studies or runs.", show_default=False)],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: report.html in the first folder.")] = None,
    audio: Annotated[int, typer.Option(help="Recordings to include, about 15 kB each.")] = 6,
) -> None:
    """Make one self-contained HTML page of studies and runs: tables, curves, recordings, verdicts."""
    from ossicle_lab.report.page import write_report

    print(write_report(runs, out or runs[0] / "report.html", recordings=audio))
