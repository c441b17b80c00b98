"""Check a recipe, its data and its models before a long run, for `ossicle doctor RECIPE`.

The checks cover audio, transcripts, models, one batch, one step and the cost of the run. Each adds `Finding`s to
a `Report`. A check is left out if an earlier one finds that its input is broken.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from ossicle.doctor.audio import check_audio
from ossicle.doctor.batch import load_batch, show_samples
from ossicle.doctor.finding import Finding, Report
from ossicle.doctor.model import build_model, check_checkpoint, check_padding, check_trainable
from ossicle.doctor.step import check_step
from ossicle.doctor.text import check_context, check_labels, check_spelling, check_template
from ossicle.doctor.tiny import shrink
from ossicle.errors import ConfigError
from ossicle.train.recipe import Config

__all__ = ["Finding", "Report", "diagnose"]


def diagnose(config: Config, *, tiny: bool = False, console: Console | None = None) -> Report:
    """Check everything that ``config`` names, print the findings to ``console``, and return them.

    With ``tiny``, small random models of the same architectures replace the configured ones, and generated data
    replaces missing manifests. This checks the recipe and the code, but not the data.
    """
    console = console or Console()
    report = Report(console)
    with ExitStack() as stack:
        if tiny:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            config, notes = shrink(config, folder)
            for note in notes:
                console.print(f"[dim]tiny: {note}[/]", soft_wrap=True)
            console.print("[dim]tiny: memory, time and disk below are for these small models[/]")
        _examine(config, report)
    return report


def _examine(config: Config, report: Report) -> None:
    report.part("Audio")
    samples = check_audio(config, report)
    report.part("Models")
    model = build_model(config, report)
    if model is None:
        return
    check_trainable(config, model, report)
    check_checkpoint(model, report)
    if not samples:
        return
    report.part("Text")
    check_template(model, report)
    check_context(config, model, samples, report)
    check_spelling(model, samples, report)
    check_labels(config, model, samples, report)
    report.part("One batch")
    try:
        loaded = load_batch(config, model)
    except ConfigError as error:
        report.error("batch", str(error), "change the setting that the message names")
        return
    show_samples(config, model, loaded.batch, report.console)
    check_padding(model, loaded, report)
    report.part("One step, and the run")
    check_step(config, model, loaded, report)
