"""Average the projectors of both stages: `python -m ossicle_lab.real.averaged STAGE1 STAGE2 FOLDER`.

Stage 2 teaches the answers, and the spelling gets a little worse. The mean of the weights before and after it has
nearly the best of both: docs/real-speech.md has the scores.

Source: WiSE-FT (Wortsman et al., 2022, "Robust fine-tuning of zero-shot models"), with equal weights.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer
from safetensors.torch import load_file

from ossicle.errors import ConfigError, OssicleError
from ossicle.files import atomic_folder
from ossicle.models.saving import ADAPTERS_FILE, WEIGHTS_FILE, read_record
from ossicle_lab.real.ship import write_projector

STAGE2_ONLY = ("prompt", "residual.")
"""Beginnings of the names of weights that the objective ``ctc`` alone does not train. They stay those of stage 2."""


def average(pretrained: Path, tuned: Path, out: Path) -> None:
    """Write the checkpoint ``tuned`` to the folder ``out``, with the mean of the projectors of both stages.

    Args:
        pretrained: Checkpoint of stage 1, from which ``tuned`` was trained.
        tuned: Checkpoint of stage 2. What it has besides the projector is copied.
        out: New folder.

    Raises `CheckpointError` if one of them is no checkpoint, and `ConfigError` if their projectors differ in shape.
    """
    record = read_record(tuned)
    read_record(pretrained)
    before, after = load_file(pretrained / WEIGHTS_FILE), load_file(tuned / WEIGHTS_FILE)
    if {name: weight.shape for name, weight in before.items()} != {name: w.shape for name, w in after.items()}:
        raise ConfigError(f"{pretrained} and {tuned} have different projectors: give both stages of one model")
    mean = {
        name: weight if name.startswith(STAGE2_ONLY) else ((before[name].float() + weight.float()) / 2).to(weight.dtype)
        for name, weight in after.items()
    }
    with atomic_folder(out) as partial:
        write_projector(partial, record, mean)
        if (tuned / ADAPTERS_FILE).is_file():
            shutil.copyfile(tuned / ADAPTERS_FILE, partial / ADAPTERS_FILE)


def main(
    pretrained: Annotated[Path, typer.Argument(help="Run of stage 1.", show_default=False)],
    tuned: Annotated[Path, typer.Argument(help="Run of stage 2, which began with it.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="Folder for the new checkpoint.", show_default=False)],
) -> None:
    """Write a checkpoint with the mean of the projectors of both stages."""
    try:
        average(pretrained, tuned, out)
    except (OssicleError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    typer.run(main)
