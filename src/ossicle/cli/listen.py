"""Commands that answer recordings with a trained model."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ossicle.cli.options import Speeds
from ossicle.errors import CheckpointError, DataError
from ossicle.progress import Progress

if TYPE_CHECKING:
    from ossicle.listen.answers import Answer

log = logging.getLogger(__name__)
Paths = Annotated[
    list[str],
    typer.Argument(
        help="Recordings in any audio format, folders of them, patterns such as 'a/*.wav', or - for standard input.",
        show_default=False,
    ),
]
Model = Annotated[
    Path,
    typer.Option("--model", "-m", help="Folder of a run or of a checkpoint, the name of a packaged one, or a hub id."),
]
Format = Annotated[
    Literal["text", "json", "verbose_json", "srt", "vtt", "tsv"],
    typer.Option(
        "--format",
        "-f",
        help="text: a line per recording. json: an object per line. tsv: file and answer. verbose_json, srt, vtt: a "
        "document per recording, with the times of its segments.",
    ),
]
AnswerFormat = Annotated[
    Literal["text", "json", "tsv"],
    typer.Option("--format", "-f", help="Lines of text, one JSON object per line, or tab-separated file and answer."),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        help="File for the answers, or folder for a document per recording. Default: standard output. A batch that "
        "was stopped continues.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the answers that --out has already.")]
BatchSize = Annotated[int, typer.Option(help="Stretches of speech that are decoded together.", min=1)]
Device = Annotated[str, typer.Option(help="Where the model runs: auto, cpu, cuda, cuda:1, mps.")]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    typer.Option(help="Type of the weights of encoder and LLM. auto is that of the training."),
]
Language = Annotated[
    str | None,
    typer.Option(help="Language of the speech, e.g. en. It is noted in verbose_json; the model is not told."),
]
Timestamps = Annotated[bool, typer.Option("--timestamps", help="Write when each stretch of speech begins and ends.")]
Vad = Annotated[
    Literal["auto", "silero", "energy", "off"],
    typer.Option(
        help="How speech is told from silence, noise and music: silero (needs the extra vad), by energy, or not "
        "at all. auto is silero if it is installed."
    ),
]
EARS = Path("ears")
"""Name of the checkpoint that ossicle-lab brings."""


def transcribe(  # noqa: PLR0913 - options of the command
    paths: Paths,
    model: Model = EARS,
    form: Format = "text",
    out: Out = None,
    timestamps: Timestamps = False,
    language: Language = None,
    batch_size: BatchSize = 8,
    speed: Speeds = None,
    vad: Vad = "auto",
    device: Device = "auto",
    dtype: Dtype = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Transcribe recordings of any length."""
    options = {"form": form, "out": out, "timestamps": timestamps, "overwrite": overwrite}
    details = {"language": language, "task": "transcribe"}
    how: dict[str, Any] = {"batch_size": batch_size, "detector": vad}
    if speed:
        how["speeds"] = speed
    _write_answers(paths, (model, device, dtype), "asr", options=options, details=details, **how)


def translate(  # noqa: PLR0913 - options of the command
    paths: Paths,
    to: Annotated[str, typer.Option(help="Target language, e.g. de.")] = "de",
    model: Model = EARS,
    form: Format = "text",
    out: Out = None,
    timestamps: Timestamps = False,
    batch_size: BatchSize = 8,
    vad: Vad = "auto",
    device: Device = "auto",
    dtype: Dtype = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Translate the speech of recordings of any length."""
    options = {"form": form, "out": out, "timestamps": timestamps, "overwrite": overwrite}
    details = {"language": to, "task": "translate"}
    how: dict[str, Any] = {"batch_size": batch_size, "detector": vad}
    _write_answers(paths, (model, device, dtype), "st", to, options=options, details=details, **how)


def ask(  # noqa: PLR0913 - options of the command
    question: Annotated[
        str, typer.Argument(help='Question or instruction, e.g. "who bought the red car".', show_default=False)
    ],
    paths: Paths,
    model: Model = EARS,
    form: AnswerFormat = "text",
    out: Out = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.", min=1)] = 200,
    own_transcript: Annotated[
        bool, typer.Option("--own-transcript", help="Transcribe first, and let the LLM read the transcript.")
    ] = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Ask a question about recordings, or give any other instruction for them."""
    if not question.strip():
        raise DataError('the question is empty: write one, such as "what is said?"')
    options = {"form": form, "out": out, "timestamps": False, "overwrite": overwrite}
    how: dict[str, Any] = {"max_new_tokens": max_new_tokens, "own_transcript": own_transcript}
    _write_answers(paths, (model, device, dtype), question=question, options=options, **how)


def listen(
    model: Model = EARS,
    microphone: Annotated[
        str | None, typer.Option(help="Number or part of the name of the microphone. Default: that of the system.")
    ] = None,
    vad: Vad = "auto",
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Transcribe what a microphone hears, one line per utterance, until Ctrl-C (needs the extra listen)."""
    from ossicle.listen.microphone import microphone_blocks, transcribe_blocks

    blocks = microphone_blocks(int(microphone) if microphone and microphone.isdigit() else microphone)
    first = next(blocks)  # errors of the microphone come before the model loads
    loaded = _load(model, device, dtype)
    typer.echo("listening; stop with Ctrl-C", err=True)
    for text in transcribe_blocks(loaded, _after(first, blocks), detector=vad):
        print(text, flush=True)


def _after(first: Any, blocks: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from blocks


def add_to(app: typer.Typer) -> None:
    """Add the commands of this file to ``app``."""
    for command in (transcribe, translate, ask, listen):
        app.command(rich_help_panel="Recordings")(command)


def _load(model: Path, device: str, dtype: str) -> Any:
    from ossicle.models.saving import locate
    from ossicle.models.speech_llm import SpeechLLM

    if model == EARS and not locate(model).is_dir():
        raise CheckpointError(
            "there is no model: install ossicle-lab, which brings one, or give the folder of a trained run with --model"
        )
    return SpeechLLM.from_pretrained(model, device=device, dtype=dtype)


def _write_answers(  # noqa: PLR0913 - those of the commands
    paths: list[str],
    chosen: tuple[Path, str, str],
    task: str = "",
    language: str | None = None,
    *,
    question: str = "",
    options: dict[str, Any],
    details: dict[str, Any] | None = None,
    **how: Any,
) -> None:
    """Write each answer as soon as it is there, and each error to standard error. Exit with 1 if there was an error."""
    from ossicle.listen.answers import answers, transcripts
    from ossicle.listen.inputs import recordings_at, total_duration_s
    from ossicle.listen.output import Output
    from ossicle.listen.wording import instruction_for, warnings_for

    files = recordings_at(paths)
    model, *_ = chosen
    form, out = options.pop("form"), options.pop("out")
    settings = {"model": str(model), "task": task, "language": language, "question": question}
    settings |= {name: str(how[name]) for name in ("own_transcript", "speeds") if how.get(name)}
    output = Output(files, form, out, settings=settings, **options)
    output.details = details or {}
    missing = output.missing
    if len(missing) < len(files):
        typer.echo(f"{len(files) - len(missing)} of {len(files)} recordings were answered before", err=True)
    if not missing:
        return
    loaded = _load(*chosen)
    for warning in warnings_for(loaded, model, task, language, question=question):
        log.warning("warning: %s", warning)
    failed, started, audio_s = 0, time.perf_counter(), 0.0
    shown = Progress("listening", total_duration_s(missing), unit="s of audio", enabled=out is not None)
    with output, shown:
        found: Iterator[Answer]
        if question:
            found = answers(loaded, missing, question, **how)
        else:
            instruction = instruction_for(loaded, task, language)
            found = transcripts(loaded, missing, instruction, on_heard=shown.advance, **how)
        for answer in found:
            if answer.error is not None:
                failed += 1
                typer.secho("error: ", fg="red", bold=True, nl=False, err=True)
                typer.echo(answer.error, err=True)
            output.write(answer)
            audio_s += answer.duration_s
            shown.update(max(shown.completed, audio_s))
        if audio_s:
            wall_s = time.perf_counter() - started
            shown.say(f"{audio_s:.0f} s of audio in {wall_s:.0f} s: real-time factor {wall_s / audio_s:.2f}, in {out}")
    if failed:
        if len(files) > 1:
            typer.echo(f"{failed} of {len(files)} recordings have no answer", err=True)
        raise typer.Exit(1)
