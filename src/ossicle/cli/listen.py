"""Commands that answer recordings with a trained model."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ossicle.errors import CheckpointError
from ossicle.progress import Progress

if TYPE_CHECKING:
    from ossicle.evaluate.listen import Answer

Paths = Annotated[
    list[str],
    typer.Argument(
        help="Recordings in any audio format, folders of them, patterns such as 'a/*.wav', or - for standard input.",
        show_default=False,
    ),
]
Model = Annotated[
    Path, typer.Option("--model", "-m", help="Folder of a run or of a checkpoint, or the name of a packaged one.")
]
Format = Annotated[
    Literal["text", "json", "tsv"],
    typer.Option("--format", "-f", help="Lines of text, one JSON object per line, or tab-separated file and answer."),
]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="File for the answers. Default: standard output.")]
BatchSize = Annotated[int, typer.Option(help="Recordings that are decoded together.", min=1)]
EARS = Path("ears")
"""Name of the checkpoint that ossicle-lab brings."""


def transcribe(
    paths: Paths, model: Model = EARS, form: Format = "text", out: Out = None, batch_size: BatchSize = 1
) -> None:
    """Transcribe recordings."""
    _write_answers(paths, model, "asr", form=form, out=out, batch_size=batch_size)


def translate(
    paths: Paths,
    to: Annotated[str, typer.Option(help="Target language, e.g. de.")] = "de",
    model: Model = EARS,
    form: Format = "text",
    out: Out = None,
    batch_size: BatchSize = 1,
) -> None:
    """Translate the speech of recordings."""
    _write_answers(paths, model, "st", to, form=form, out=out, batch_size=batch_size)


def ask(
    question: Annotated[
        str, typer.Argument(help='Question or instruction, e.g. "who bought the red car".', show_default=False)
    ],
    paths: Paths,
    model: Model = EARS,
    form: Format = "text",
    out: Out = None,
    batch_size: BatchSize = 1,
) -> None:
    """Ask a question about recordings, or give any other instruction for them."""
    _write_answers(paths, model, question=question, form=form, out=out, batch_size=batch_size)


def add_to(app: typer.Typer) -> None:
    """Add the commands of this file to ``app``."""
    for command in (transcribe, translate, ask):
        app.command(rich_help_panel="Recordings")(command)


def _write_answers(  # noqa: PLR0913 - those of the commands
    paths: list[str],
    model: Path,
    task: str = "",
    language: str | None = None,
    *,
    question: str = "",
    form: str,
    out: Path | None,
    batch_size: int,
) -> None:
    """Write each answer as soon as it is there, and each error to standard error. Exit with 1 if there was an error."""
    from ossicle.evaluate.listen import listen, recordings_at
    from ossicle.models.saving import locate

    if model == EARS and not locate(model).is_dir():
        raise CheckpointError(
            "there is no model: install ossicle-lab, which brings one, or give the folder of a trained run with --model"
        )
    files, failed = recordings_at(paths), 0
    with ExitStack() as stack:
        target = stack.enter_context(out.open("w", encoding="utf-8")) if out else sys.stdout
        shown = stack.enter_context(Progress("listening", len(files), unit="recordings", enabled=out is not None))
        for answer in listen(files, model, task, language, question=question, batch_size=batch_size):
            if answer.error is not None:
                failed += 1
                typer.secho("error: ", fg="red", bold=True, nl=False, err=True)
                typer.echo(answer.error, err=True)
            if (line := _line(answer, form, alone=len(files) == 1)) is not None:
                print(line, file=target, flush=True)
            shown.advance()
    if failed:
        if len(files) > 1:
            typer.echo(f"{failed} of {len(files)} recordings have no answer", err=True)
        raise typer.Exit(1)


def _line(answer: Answer, form: str, *, alone: bool) -> str | None:
    """Return the line for an answer, or None for an error that the form cannot show."""
    if form == "json":
        content = {"text": answer.text} if answer.error is None else {"error": answer.error}
        return json.dumps({"file": str(answer.file), **content}, ensure_ascii=False)
    if answer.error is not None:
        return None
    if form == "tsv":
        return f"{answer.file}\t{' '.join(answer.text.split())}"
    return answer.text if alone else f"{answer.file}: {answer.text}"
