"""Commands that answer recordings with a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Files = Annotated[
    list[Path],
    typer.Argument(help="Recordings: WAV, FLAC, MP3, OGG or Opus, at any sampling rate.", show_default=False),
]
Model = Annotated[Path, typer.Option("--model", "-m", help="Folder of a run or of a checkpoint.")]
DEMO_MODEL = Path("runs/demo/model")


def transcribe(files: Files, model: Model = DEMO_MODEL) -> None:
    """Transcribe recordings."""
    _print_answers(files, model, "asr")


def translate(
    files: Files,
    to: Annotated[str, typer.Option(help="Target language, e.g. de.")] = "de",
    model: Model = DEMO_MODEL,
) -> None:
    """Translate the speech of recordings."""
    _print_answers(files, model, "st", to)


def ask(
    question: Annotated[
        str, typer.Argument(help='Question or instruction, e.g. "who bought the red car".', show_default=False)
    ],
    files: Files,
    model: Model = DEMO_MODEL,
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
    from ossicle.evaluate.listen import listen

    for file, answer in listen(files, model, task, language, question=question):
        print(f"{file}: {answer}" if len(files) > 1 else answer)
