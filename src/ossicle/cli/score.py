"""The command that scores hypotheses again. Thin, like `ossicle.cli.main`, which adds it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer


def score(  # noqa: PLR0913 - each parameter is an option of the command
    files: Annotated[
        list[Path], typer.Argument(help="Hypotheses (JSONL) that `ossicle evaluate` wrote.", show_default=False)
    ],
    normalise: Annotated[
        Literal["none", "basic", "whisper"], typer.Option(help="What is done to texts before WER and CER.")
    ] = "basic",
    spelling: Annotated[
        Path | None, typer.Option(help="For whisper: the normalizer.json of a Whisper checkpoint.")
    ] = None,
    seeds: Annotated[
        bool, typer.Option("--seeds", help="The files are seeds of one run: show mean ± sd, not differences.")
    ] = False,
    lower: Annotated[
        str | None, typer.Option(help="Lower run of the normalised average: a file, or the name of one given.")
    ] = None,
    upper: Annotated[str | None, typer.Option(help="Its upper run.")] = None,
    comet: Annotated[bool, typer.Option("--comet", help="COMET of translations; it gets a Python of its own.")] = False,
    comet_command: Annotated[str | None, typer.Option(help="A scorer instead; see docs/evaluation.md.")] = None,
    resamples: Annotated[int, typer.Option(help="Of the bootstrap; 0 = no intervals.", min=0)] = 1000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print plain JSON.")] = False,
) -> None:
    """Score hypotheses anew, with intervals; several files are compared with the first."""
    from ossicle.evaluate.comet import CometOptions
    from ossicle.evaluate.rescore import print_scored, rescore
    from ossicle.evaluate.score import ScoreOptions

    if (lower is None) != (upper is None):
        raise ValueError("the normalised average needs both --lower and --upper")
    if spelling is not None and normalise != "whisper":
        raise ValueError("--spelling is read by --normalise whisper only")
    options = ScoreOptions(
        normalise=normalise,
        spelling=spelling,
        resamples=resamples,
        seed=seed,
        comet=CometOptions(comet_command) if comet or comet_command else None,
    )
    references = None if lower is None or upper is None else (lower, upper)
    scored = rescore(files, options, seeds=seeds, references=references)
    if as_json:
        print(json.dumps(scored.to_json(), indent=2, ensure_ascii=False))
    else:
        print_scored(scored)


def add_to(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(score)
