"""The command that looks inside: `ossicle analyze`. Thin, like `ossicle.cli`, which adds it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


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
    from ossicle.evaluate.analyze import AnalyzeOptions
    from ossicle.evaluate.analyze import analyze as run

    options = AnalyzeOptions(limit, seed, batch_size, tuple(show or ()), before, bos, probes, skip_broken)
    run(checkpoint, manifest, out or checkpoint / "analysis" / manifest.stem, options)


def add_to(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command()(analyze)
