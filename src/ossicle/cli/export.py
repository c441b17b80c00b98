"""Command that writes a trained model in the formats of other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Run = Annotated[
    Path,
    typer.Argument(
        help="Folder of a run or of a checkpoint, or the name of a packaged checkpoint.", show_default=False
    ),
]
Out = Annotated[Path, typer.Argument(help="Folder to write. It must be empty or not exist.", show_default=False)]
Form = Annotated[
    Literal["custom", "granite_speech", "ultravox"],
    typer.Option(
        "--as",
        help="Format: 'custom' for Transformers, vLLM and SGLang with the model's own code, 'granite_speech' for "
        "programs that know Granite Speech, 'ultravox' for vLLM and llama.cpp.",
    ),
]
Merge = Annotated[
    bool, typer.Option("--merge", help="Write the weights of encoder and LLM too, instead of their folders or hub ids.")
]
Encoder = Annotated[str | None, typer.Option(help="Folder or hub id of the encoder, if it has moved.")]
Llm = Annotated[str | None, typer.Option(help="Folder or hub id of the LLM, if it has moved.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the folder if it has files.")]


def export(  # noqa: PLR0913 - the options of the command
    run: Run,
    out: Out,
    form: Form = "custom",
    merge: Merge = False,
    encoder: Encoder = None,
    llm: Llm = None,
    force: Force = False,
) -> None:
    """Write a trained model as a folder that Transformers, vLLM, SGLang or llama.cpp load."""
    from ossicle.export.run import export as write

    folder = write(run, out, form=form, merge=merge, encoder=encoder, llm=llm, force=force)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{folder}: {form}, {size / 1e6:,.1f} MB")


def add_to(app: typer.Typer) -> None:
    """Add the command of this file to ``app``."""
    app.command()(export)
