"""Arguments and options that several commands share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from ossicle.shards import Shard

RAY_ADDRESS = re.compile(r"local|auto|(ray://)?[^/:]+:\d+")
"""Addresses that ``--ray`` takes. Another argument after it belongs to the command."""

Recipe = Annotated[
    Path,
    typer.Argument(
        help="Recipe: a YAML file or the name of an installed recipe; `ossicle recipes` lists the names.",
        show_default=False,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="Changes to the recipe, written section.field=value, e.g. train.steps=100.", show_default=False
    ),
]
Checkpoint = Annotated[Path, typer.Argument(help="Folder of a run or of a checkpoint.", show_default=False)]
SkipBroken = Annotated[
    bool, typer.Option("--skip-broken", help="Skip and list utterances that fail instead of stopping.")
]
Targets = Annotated[
    list[str] | None, typer.Option("--target", help="Keep only translations into this language; repeatable.")
]
MinDuration = Annotated[float, typer.Option(help="Leave out shorter utterances, in seconds.", min=0)]
MaxDuration = Annotated[float, typer.Option(help="Leave out longer utterances, in seconds.", min=0)]
Lower = Annotated[bool, typer.Option("--lower", help="Write transcripts in lower case.")]
Speeds = Annotated[
    list[float] | None,
    typer.Option(
        "--speed",
        help="Hear each recording at this speed too, such as 0.9; repeatable. Better transcripts of models that spell; "
        "each speed takes as much time as the recording itself.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
ShardOf = Annotated[
    str | None,
    typer.Option(
        "--shard", metavar="I/N", help="Do part I of N, as a job of an array; the last of them writes the output."
    ),
]
Ray = Annotated[
    str | None,
    typer.Option(
        metavar="[ADDRESS]",
        help="Divide the work on Ray: `local` (default) for processes here, `auto` or HOST:PORT of a cluster.",
    ),
]
Blocks = Annotated[int, typer.Option(help="With --ray: number of parts; a restart repeats unfinished ones.", min=1)]


class RayCommand(TyperCommand):
    """A command with the option ``--ray [ADDRESS]``. Typer has no options whose value may be left out."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments, with the address ``local`` where ``--ray`` has none."""
        end = args.index("--") if "--" in args else len(args)
        for place in [i for i, arg in enumerate(args[:end]) if arg == "--ray"][::-1]:
            if place + 1 == end or not RAY_ADDRESS.fullmatch(args[place + 1]):
                args = [*args[: place + 1], "local", *args[place + 1 :]]
        return super().parse_args(ctx, args)


def shard_of(text: str | None, ray: str | None) -> Shard | None:
    """Return the shard of the option. Raises `typer.BadParameter` if ``--ray`` is given too."""
    if text is not None and ray is not None:
        raise typer.BadParameter("--shard and --ray exclude each other: give only one")
    return None if text is None else Shard.parse(text)
