"""Commands that answer recordings with a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ossicle.errors import CheckpointError

Files = Annotated[
    list[Path],
    typer.Argument(help="Recordings: WAV, FLAC, MP3, OGG or Opus, at any sampling rate.", show_default=False),
]
Model = Annotated[
    Path, typer.Option("--model", "-m", help="Folder of a run or of a checkpoint, or the name of a packaged one.")
]
EARS = Path("ears")
"""Name of the checkpoint that ossicle-lab brings."""


def transcribe(files: Files, model: Model = EARS) -> None:
    """Transcribe recordings."""
    _print_answers(files, model, "asr")


def translate(
    files: Files,
    to: Annotated[str, typer.Option(help="Target language, e.g. de.")] = "de",
    model: Model = EARS,
) -> None:
    """Translate the speech of recordings."""
    _print_answers(files, model, "st", to)


def ask(
    question: Annotated[
        str, typer.Argument(help='Question or instruction, e.g. "who bought the red car".', show_default=False)
    ],
    files: Files,
    model: Model = EARS,
) -> None:
    """Ask a question about recordings, or give any other instruction for them."""
    _print_answers(files, model, question=question)


def add_to(app: typer.Typer) -> None:
    """Add the commands of this file to ``app``."""
    for command in (transcribe, translate, ask):
        app.command(rich_help_panel="Recordings")(command)


def _print_answers(
    files: list[Path], model: Path, task: str = "", language: str | None = None, *, question: str = ""
) -> None:
    """Print each answer on standard output and each error on standard error. Exit with 1 if there was an error."""
    from ossicle.evaluate.listen import listen
    from ossicle.models.saving import locate

    if model == EARS and not locate(model).is_dir():
        raise CheckpointError(
            "there is no model: install ossicle-lab, which brings one, or give the folder of a trained run with --model"
        )

    failed = 0
    for answer in listen(files, model, task, language, question=question):
        if answer.error is not None:
            failed += 1
            typer.secho("error: ", fg="red", bold=True, nl=False, err=True)
            typer.echo(answer.error, err=True)
        else:
            print(f"{answer.file}: {answer.text}" if len(files) > 1 else answer.text, flush=True)
    if failed:
        if len(files) > 1:
            typer.echo(f"{failed} of {len(files)} recordings have no answer", err=True)
        raise typer.Exit(1)
