"""Define the commands of the laboratory, which `ossicle` finds by entry points."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    quick: Annotated[
        bool, typer.Option("--quick", help="Use a smaller corpus and fewer steps: under 4 minutes.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for all outputs; a second call continues there.")] = Path(
        "runs/demo"
    ),
) -> None:
    """Run the whole method on generated speech: both stages, two reference runs, a table, plots and examples."""
    from ossicle_lab.demo.run import FULL, QUICK, run

    run(out, QUICK if quick else FULL)


def analyze(  # noqa: PLR0913 - each parameter is an option of the command
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a run, or a checkpoint.", show_default=False)],
    manifest: Annotated[Path, typer.Argument(help="Manifest (JSONL) with transcripts.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Output folder. Default: CHECKPOINT/analysis/MANIFEST.")] = None,
    before: Annotated[
        Path | None, typer.Option(help="Checkpoint to compare with. Default: the untrained projector.")
    ] = None,
    show: Annotated[
        list[str] | None,
        typer.Option(help="Utterance whose token alignment is drawn; may be repeated. Default: 3 utterances."),
    ] = None,
    limit: Annotated[
        int, typer.Option(min=2, help="Largest number of utterances; larger manifests are sampled.")
    ] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the sample and of the untrained projector.")] = 0,
    batch_size: Annotated[int, typer.Option(min=2, help="Utterances per batch.")] = 16,
    bos: Annotated[bool, typer.Option("--bos", help="Put a begin-of-sequence token before speech and text.")] = False,
    probes: Annotated[bool, typer.Option(help="Train linear probes (scikit-learn).")] = True,
    skip_broken: Annotated[bool, typer.Option(help="Count and list unreadable files instead of stopping.")] = False,
) -> None:
    """Measure the alignment of speech with its transcripts inside the LLM by layer, and train linear probes."""
    from ossicle_lab.analysis.analyze import AnalyzeOptions
    from ossicle_lab.analysis.analyze import analyze as run

    options = AnalyzeOptions(limit, seed, batch_size, tuple(show or ()), before, bos, probes, skip_broken)
    run(checkpoint, manifest, out or checkpoint / "analysis" / manifest.stem, options)


def layer_gradients(
    run: Annotated[Path, typer.Argument(help="Folder of a contrastive run.", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings as section.field=value, e.g. objective.layers=all.")
    ] = None,
    at: Annotated[
        list[Path] | None, typer.Option(help="Checkpoint to measure; may be repeated. Default: the end of the run.")
    ] = None,
    batches: Annotated[int, typer.Option(min=2, help="Number of training batches to average over.")] = 8,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Output file. Default: RUN/layer_gradients.json.")
    ] = None,
) -> None:
    """Compare the gradients of the contrastive losses of single layers, before training and after."""
    from ossicle_lab.analysis.layer_gradients import run as run_command

    run_command(run, at or [], batches=batches, overrides=overrides or [], out=out)


def study(  # noqa: PLR0913 - each parameter is an option of the command
    recipe: Annotated[Path, typer.Argument(help="File or name of a study, e.g. lab/paper_table.", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings as section.field=value, e.g. seeds=[0,1].")
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="Run the smaller version that the study defines, in a folder with the suffix -quick."
        ),
    ] = False,
    jobs: Annotated[
        int | None, typer.Option(help="Number of processes with one thread each. Default: one per core.")
    ] = None,
    rerun_changed: Annotated[
        bool, typer.Option("--rerun-changed", help="Run the jobs again whose settings have changed.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the file and list its cells without running anything.")
    ] = False,
    summary: Annotated[
        bool, typer.Option("--summary", help="Show the results so far without running anything.")
    ] = False,
) -> None:
    """Run a grid of pretrainings, fine-tuning fractions and seeds; the same command continues it."""
    from rich.console import Console

    from ossicle_lab.study.config import load
    from ossicle_lab.study.summary import describe, print_results

    config = load(recipe, overrides or (), quick=quick)
    if dry_run:
        describe(config, Console())
        return
    from ossicle_lab.study.run import run_study, summarise

    record = summarise(config) if summary else run_study(config, processes=jobs, rerun_changed=rerun_changed)
    print_results(record, Console())
    print(f"{config.folder / 'results.json'}; show it with: ossicle report {config.folder}")


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of studies or runs.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Output file. Default: report.html in the first folder.")
    ] = None,
    audio: Annotated[int, typer.Option(help="Number of recordings to include, about 15 kB each.")] = 6,
    audio_folder: Annotated[
        list[Path] | None,
        typer.Option(help="Folder whose audio the page may contain. Repeatable. Default: only the folders of RUNS."),
    ] = None,
) -> None:
    """Make one self-contained HTML page of studies and runs: tables, curves, recordings, verdicts."""
    from ossicle_lab.report.page import write_report

    print(write_report(runs, out or runs[0] / "report.html", recordings=audio, audio_folders=audio_folder or ()))
