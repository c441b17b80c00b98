"""Make a checkpoint fit to ship: `python -m ossicle_lab.real.ship RUN FOLDER`.

The projector's weights are rounded to 8 bits, which makes the file a quarter as large. The base models are recorded by
the names of `ossicle_lab.real.models` instead of the folders of this machine.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any

import typer
from safetensors.torch import load_file, save_file
from torch import Tensor

from ossicle.errors import ConfigError, OssicleError
from ossicle.files import atomic_folder, write_json
from ossicle.models.eight_bits import narrowed
from ossicle.models.saving import CONFIG_FILE, WEIGHTS_FILE, read_record
from ossicle_lab.real.models import MODELS


def ears() -> Path:
    """Return the folder of the checkpoint that comes with this package; CARD.md in it describes it."""
    return Path(__file__).parent / "ears"


def ship(run: Path, out: Path) -> None:
    """Write the projector of the checkpoint ``run`` to the folder ``out``, in 8 bits and without local paths.

    Raises `CheckpointError` if ``run`` is no checkpoint, and `ConfigError` if its base models are no published ones or
    if more than the projector was trained.
    """
    record = read_record(run)
    if set(record["files"]) != {WEIGHTS_FILE}:
        raise ConfigError(f"{run}: more than the projector was trained, which cannot be shipped this way")
    for part in ("encoder", "llm"):
        name = Path(record["model"][part]).name
        if name not in MODELS:
            raise ConfigError(f"{run}: its {part} {name} is none of the published models: {', '.join(MODELS)}")
        record["model"][part] = name
    with atomic_folder(out) as partial:
        write_projector(partial, record, narrowed(load_file(run / WEIGHTS_FILE)))


def write_projector(folder: Path, record: dict[str, Any], weights: dict[str, Tensor]) -> None:
    """Write the ``weights`` of a projector and the ``record`` of its checkpoint, with a new checksum, to ``folder``."""
    path = folder / WEIGHTS_FILE
    save_file(weights, path)
    path.chmod(0o644)  # safetensors writes files that only their owner can read
    with path.open("rb") as file:
        record["files"][WEIGHTS_FILE] = hashlib.file_digest(file, "sha256").hexdigest()
    write_json(folder / CONFIG_FILE, record)


def main(
    run: Annotated[Path, typer.Argument(help="Folder of the run.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="Folder for the shipped checkpoint.", show_default=False)],
) -> None:
    """Round a projector to 8 bits and name its base models as published."""
    try:
        ship(run, out)
    except (OssicleError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    typer.run(main)
