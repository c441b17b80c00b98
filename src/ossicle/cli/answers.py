"""Command that lets an LLM answer instructions about transcripts, for training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def prepare_answers(  # noqa: PLR0913 - each parameter is an option of the command
    manifest: Annotated[Path, typer.Argument(help="Manifest (JSONL) with transcripts.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="Manifest to write; a second call resumes.", show_default=False)],
    llm: Annotated[str, typer.Option(help="LLM: hub id or folder, the one that is trained with.")] = "lab",
    instruction: Annotated[list[str] | None, typer.Option(help="Instruction about the speech; repeatable.")] = None,
    instructions: Annotated[Path | None, typer.Option(help="Text file with one instruction per line.")] = None,
    per_utterance: Annotated[
        int | None, typer.Option(help="Instructions per utterance, drawn by its id. Default: all.", min=1)
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(help="Longest answer in tokens; longer ones are left out.", min=1)
    ] = 200,
    batch_size: Annotated[int, typer.Option(help="Answers that are decoded together.", min=1)] = 32,
    turn: Annotated[str, typer.Option(help="Text of the user's turn, as model.turn of the recipe.")] = "",
    dtype: Annotated[
        str, typer.Option(help="Type of the weights: float32, bfloat16, float16, int8 or int4.")
    ] = "float32",
    device: Annotated[
        str, typer.Option(help="Device, such as cuda; auto takes an accelerator if there is one.")
    ] = "auto",
) -> None:
    """Let the LLM answer instructions about transcripts, and write a manifest of the answers to train on."""
    from ossicle.corpora.self_answers import AnswerOptions
    from ossicle.corpora.self_answers import prepare_answers as run
    from ossicle.errors import ConfigError, DataError
    from ossicle.models.frozen import resolve
    from ossicle.models.llm import PRECISIONS, load_llm
    from ossicle.models.saving import chosen_device
    from ossicle.precision import usable
    from ossicle.prompts import TURN

    if dtype not in PRECISIONS:
        raise ConfigError(f"--dtype {dtype}: give one of {', '.join(PRECISIONS)}")
    given = list(instruction or [])
    if instructions is not None:
        try:
            given += instructions.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise DataError(f"{instructions}: is not UTF-8 text ({error.reason}); save it as UTF-8") from error
    place, stored = chosen_device(device), PRECISIONS[dtype]
    loaded = load_llm(resolve(llm, "llm"), **{**stored, "dtype": usable(stored["dtype"], place), "device": place})
    options = AnswerOptions(
        instructions=given,
        per_utterance=per_utterance,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        turn=turn or TURN,
    )
    print(f"{out}: {run(manifest, out, loaded, options)}")


def add_to(app: typer.Typer) -> None:
    """Add the command of this file to ``app``."""
    app.command(rich_help_panel="Data")(prepare_answers)
