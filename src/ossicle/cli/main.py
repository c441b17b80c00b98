"""The command line. Thin: every command imports what it needs when it runs, so that ``--help`` is instant."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated

import typer

from ossicle import __version__
from ossicle.cli import data, score
from ossicle.errors import MissingPackageError

app = typer.Typer(
    name="ossicle",
    help="Teach a frozen LLM to listen: contrastive SpeechLLM pretraining.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Model = Annotated[Path, typer.Option("--model", "-m", help="A run's folder or a checkpoint.")]
Files = Annotated[
    list[Path], typer.Argument(help="Recordings: WAV, FLAC, MP3, OGG, Opus; any rate.", show_default=False)
]
DEMO_MODEL = Path("runs/demo/model")
LAB_COMMANDS = ("analyze", "demo", "report", "study")
ANY_ARGUMENTS = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe; see recipes/.", show_default=False)],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.field=value, e.g. train.steps=100")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run from its newest checkpoint.")] = False,
) -> None:
    """Train a projector: either stage, any objective."""
    from ossicle.train import recipe as config
    from ossicle.train import train as run

    print(run(config.load(recipe, overrides or ()), resume=resume))


@app.command()
def doctor(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe; see recipes/.", show_default=False)],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.field=value, e.g. data.batch_size=4")] = None,
    tiny: Annotated[
        bool, typer.Option("--tiny", help="Small random models of the same architectures; data made up if missing.")
    ] = False,
) -> None:
    """Examine a run before it starts: data, models, one batch, one step, its cost. Exits with 1 on errors."""
    from rich.console import Console

    from ossicle.doctor import diagnose
    from ossicle.train import recipe as config

    console = Console()
    report = diagnose(config.load(recipe, overrides or ()), tiny=tiny, console=console)
    console.print(f"\n[bold]{report.summary()}[/]")
    if report.of("error"):
        raise typer.Exit(1)


@app.command()
def cache(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe; see recipes/.", show_default=False)],
    overrides: Annotated[list[str] | None, typer.Argument(help="e.g. data.cache_text=true data.cache_dir=DIR")] = None,
) -> None:
    """Compute once, before training, what the frozen encoder and LLM make of the training data."""
    from ossicle.train import recipe as config
    from ossicle.train.cache_fill import fill_caches

    fill_caches(config.load(recipe, overrides or ()))


@app.command()
def evaluate(  # noqa: PLR0913 - each parameter is an option of the command
    model: Annotated[Path, typer.Argument(help="A run's folder or a checkpoint.", show_default=False)],
    manifest: Annotated[Path, typer.Argument(help="Stage-2 manifest (JSONL) with references.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Hypotheses; default: MODEL/eval/MANIFEST.jsonl.")] = None,
    fraction: Annotated[float, typer.Option(help="Seeded subset of the manifest.")] = 1.0,
    batch_size: Annotated[int, typer.Option(help="Utterances decoded together.")] = 16,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 200,
    skip_broken: Annotated[bool, typer.Option(help="Count and list unreadable files instead of stopping.")] = False,
    from_text: Annotated[bool, typer.Option(help="Read transcripts instead of speech: the upper bound.")] = False,
    cascade: Annotated[bool, typer.Option(help="Read what the encoder's own CTC head recognises.")] = False,
) -> None:
    """Decode a manifest to hypotheses, then score each task and language."""
    from ossicle.evaluate.run import EvalOptions
    from ossicle.evaluate.run import evaluate as run

    if from_text and cascade:
        raise typer.BadParameter("--from-text and --cascade read different texts: give one of them")
    kind = "-text" if from_text else "-cascade" if cascade else ""
    out = out or model / "eval" / f"{manifest.stem}{kind}.jsonl"
    run(model, manifest, out, EvalOptions(fraction, batch_size, max_new_tokens, skip_broken, from_text, cascade))


@app.command()
def transcribe(files: Files, model: Model = DEMO_MODEL) -> None:
    """Write down what is said in recordings."""
    _listen(files, model, "asr")


@app.command()
def translate(
    files: Files,
    to: Annotated[str, typer.Option(help="Target language, e.g. de.")] = "de",
    model: Model = DEMO_MODEL,
) -> None:
    """Translate what is said in recordings."""
    _listen(files, model, "st", to)


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help='E.g. "who bought the red car".', show_default=False)],
    files: Files,
    model: Model = DEMO_MODEL,
) -> None:
    """Ask a question about, or give any instruction for, recordings."""
    _listen(files, model, question=question)


@app.command()
def align(  # noqa: PLR0913 - each parameter is an option of the command
    manifest: Annotated[Path, typer.Argument(help="Manifest (JSONL) with transcripts.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="The same manifest with word times.", show_default=False)],
    model: Annotated[str, typer.Option(help="CTC model: hub id or folder; lab: the tiny one in the package.")] = "lab",
    batch_size: Annotated[int, typer.Option(help="Utterances aligned together.")] = 16,
    from_textgrid: Annotated[Path | None, typer.Option(help="Folder of TextGrids to read instead.")] = None,
    from_ctm: Annotated[Path | None, typer.Option(help="CTM file to read instead.")] = None,
    skip_broken: Annotated[bool, typer.Option(help="Leave out and list what fails instead of stopping.")] = False,
) -> None:
    """Find when each word is spoken: what mixed speech-text training needs."""
    from ossicle.align.aligner import Aligner
    from ossicle.align.files import align_manifest, import_words

    source = from_textgrid or from_ctm
    if source is not None:
        report = import_words(manifest, out, source, skip_broken=skip_broken)
    else:
        report = align_manifest(manifest, out, Aligner.load(model), batch_size=batch_size, skip_broken=skip_broken)
    print(f"{out}: {report.summary()}")


@app.command()
def import_official(
    projector: Annotated[Path, typer.Argument(help="mm_speech_projector.bin of the paper's code.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the checkpoint.", show_default=False)],
    encoder: Annotated[str, typer.Option(help="Hub id or folder of the speech encoder it was trained with.")] = (
        "facebook/hubert-large-ls960-ft"
    ),
    llm: Annotated[str, typer.Option(help="Hub id or folder of the LLM it was trained with.")] = (
        "meta-llama/Llama-3.1-8B-Instruct"
    ),
    llm_dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "bfloat16",
    heads: Annotated[int | None, typer.Option(help="Attention heads; default: qformer_config.json, else 12.")] = None,
) -> None:
    """Turn a projector that the paper's own code trained into a checkpoint of Ossicle."""
    from ossicle.models.official import import_official as run

    run(projector, out, encoder=encoder, llm=llm, llm_dtype=llm_dtype, heads=heads)
    print(out)


@app.command()
def recipes() -> None:
    """List the recipes that are installed, by the names that `train`, `doctor` and `study` take."""
    from ossicle.recipes import names

    print("\n".join(names()))


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)


def _add_commands_of_packages() -> None:
    """Add the commands that installed packages register, and a hint in place of those of the laboratory."""
    found = {entry.name: entry for entry in entry_points(group="ossicle.commands")}
    for name in sorted(found):
        app.command(name)(found[name].load())
    for name in LAB_COMMANDS:
        if name not in found:
            app.command(name, hidden=True, context_settings=ANY_ARGUMENTS)(_hint(name))


def _hint(name: str) -> Callable[[], None]:
    def run() -> None:
        raise MissingPackageError(
            f"`ossicle {name}` comes with the package ossicle-lab, which is not installed: "
            "run pip install ./lab in a checkout"
        )

    return run


data.add_to(app)
score.add_to(app)
_add_commands_of_packages()


def _listen(files: list[Path], model: Path, task: str = "", language: str | None = None, *, question: str = "") -> None:
    from ossicle.evaluate.listen import listen

    for file, answer in listen(files, model, task, language, question=question):
        print(f"{file}: {answer}" if len(files) > 1 else answer)


def main() -> None:
    """Run a command; errors are shown as one message, with a traceback only where OSSICLE_DEBUG is set."""
    if os.environ.get("OSSICLE_DEBUG"):
        app()
        return
    try:
        app()
    except (ValueError, OSError, RuntimeError) as error:
        from rich.console import Console
        from rich.markup import escape

        console = Console(stderr=True, soft_wrap=True, highlight=False)
        console.print(f"[bold red]error:[/] {escape(str(error))}")
        console.print("(OSSICLE_DEBUG=1 shows where)", style="dim")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
