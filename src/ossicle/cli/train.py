"""Commands that train a projector or prepare a training run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ossicle.cli.options import Blocks, Overrides, Ray, RayCommand, Recipe, ShardOf, shard_of


def train(
    recipe: Recipe,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run from its newest checkpoint.")] = False,
    allow_changed_data: Annotated[
        bool,
        typer.Option("--allow-changed-data", help="Resume although the data have changed; the epoch starts again."),
    ] = False,
) -> None:
    """Train a projector with any objective, in stage 1 or stage 2."""
    from ossicle.train import recipe as config
    from ossicle.train import train as run

    print(run(config.load(recipe, overrides or ()), resume=resume, allow_changed_data=allow_changed_data))


def doctor(
    recipe: Recipe,
    overrides: Overrides = None,
    tiny: Annotated[
        bool,
        typer.Option("--tiny", help="Use small random models of the same architectures, and invent missing data."),
    ] = False,
) -> None:
    """Check a run before it starts: data, models, one batch, one step and its cost. Exit with 1 on errors."""
    from rich.console import Console

    from ossicle.doctor import diagnose
    from ossicle.train import recipe as config

    console = Console()
    report = diagnose(config.load(recipe, overrides or ()), tiny=tiny, console=console)
    console.print(f"\n[bold]{report.summary()}[/]")
    if report.of("error"):
        raise typer.Exit(1)


def cache(
    recipe: Recipe, overrides: Overrides = None, shard: ShardOf = None, ray: Ray = None, blocks: Blocks = 32
) -> None:
    """Compute the frozen encoder and LLM outputs of the training data once, before training."""
    from ossicle.train import recipe as config
    from ossicle.train.cache_fill import fill_caches, fill_shard

    part, changes = shard_of(shard, ray), list(overrides or ())
    if ray is not None:
        from ossicle.on_ray import run_shards

        run_shards(fill_shard, (recipe, changes), count=blocks, address=ray, title="filling caches", gpu=True)
    elif part is not None:
        fill_shard(part, recipe, changes)
    else:
        fill_caches(config.load(recipe, changes))


def recipes() -> None:
    """List the names of the installed recipes."""
    from ossicle.recipes import names

    print("\n".join(names()))


def import_official(
    projector: Annotated[
        Path, typer.Argument(help="File mm_speech_projector.bin that the paper's code wrote.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the checkpoint.", show_default=False)],
    encoder: Annotated[str, typer.Option(help="Speech encoder used in training: hub id or folder.")] = (
        "facebook/hubert-large-ls960-ft"
    ),
    llm: Annotated[str, typer.Option(help="LLM used in training: hub id or folder.")] = (
        "meta-llama/Llama-3.1-8B-Instruct"
    ),
    llm_dtype: Annotated[str, typer.Option(help="Data type of the LLM: float32, bfloat16 or float16.")] = "bfloat16",
    heads: Annotated[
        int | None, typer.Option(help="Attention heads. Default: as in qformer_config.json, else 12.")
    ] = None,
) -> None:
    """Convert a projector trained with the paper's code into an Ossicle checkpoint."""
    from ossicle.models.official import import_official as run

    run(projector, out, encoder=encoder, llm=llm, llm_dtype=llm_dtype, heads=heads)
    print(out)


def add_to(app: typer.Typer) -> None:
    """Add the commands of this file to ``app``."""
    for command in (train, doctor, cache, recipes, import_official):
        app.command(cls=RayCommand, rich_help_panel="Training")(command)
