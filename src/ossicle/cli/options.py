"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
