"""The command line of a real run (`make real`)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ossicle.errors import OssicleError
from ossicle_lab.real.models import SOURCES
from ossicle_lab.real.run import FULL, RECIPES, SHORT, fitting, run

NO_VOICES: dict[str, Any] = {"sentences": 0, "natural": 0, "passages": 0, "test_passages": 0, "translations": 0}
"""Sizes of a corpus without generated voices."""


def main(  # noqa: PLR0913 - each parameter is an option of the command
    recordings: Annotated[
        Path, typer.Argument(help="Folder of recordings: CORPUS/manifest.jsonl, or real_speech/ and text/.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for all outputs; a second call continues there.")] = Path(
        "runs/real"
    ),
    size: Annotated[
        Literal["auto", "full", "short"],
        typer.Option(help="Size of data, trainings and tests. auto: full, or short on a CPU without bfloat16."),
    ] = "auto",
    llm: Annotated[str, typer.Option(help="Published LLM by name, or the folder of another.")] = FULL.llm,
    encoder: Annotated[str, typer.Option(help="Published encoder by name, or the folder of another.")] = FULL.encoder,
    voices: Annotated[bool, typer.Option(help="Speak texts in generated voices too (espeak-ng, Piper).")] = True,
    own_answers: Annotated[
        int, typer.Option(min=0, help="Number of recordings with the LLM's own answers as targets.")
    ] = FULL.own_answers,
    source: Annotated[str, typer.Option(help="Where models come from: auto, hub or packages.")] = "auto",
) -> None:
    """Train a projector between published models on recorded speech, and test it on speakers it never heard."""
    if source not in SOURCES:
        raise SystemExit(f"error: --source {source}: choose {', '.join(SOURCES)}")
    scale = {"auto": fitting(), "full": FULL, "short": SHORT}[size]
    if size == "auto" and scale == SHORT:
        print(
            "This CPU has no instructions for bfloat16, so this is the short run. --size full takes about seven hours.",
            flush=True,
        )
    pretrain, finetune = RECIPES.get(llm, (FULL.pretrain, FULL.finetune))
    scale = replace(
        scale,
        encoder=encoder,
        llm=llm,
        pretrain=pretrain,
        finetune=finetune,
        sizes=scale.sizes if voices else replace(scale.sizes, **NO_VOICES),
        own_answers=own_answers,
    )
    try:
        run(recordings, out, scale, source=SOURCES[source])
    except (OssicleError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    typer.run(main)
