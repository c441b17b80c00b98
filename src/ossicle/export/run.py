"""Export a checkpoint to a folder: check the arguments, load the model, write the files of the chosen format."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from ossicle.errors import ConfigError
from ossicle.export.card import write_card
from ossicle.files import atomic_folder
from ossicle.models.saving import locate
from ossicle.models.speech_llm import SpeechLLM

Form = Literal["custom", "granite_speech", "ultravox"]


def export(  # noqa: PLR0913 - the options of the command
    run: str | Path,
    out: str | Path,
    *,
    form: Form = "custom",
    merge: bool = False,
    encoder: str | None = None,
    llm: str | None = None,
    force: bool = False,
) -> Path:
    """Write a trained model to the new folder ``out`` in a format that other programs load, and return ``out``.

    Args:
        run: Folder of a run or of a checkpoint, or the name of a packaged one.
        out: Folder to write.
        form: ``custom`` for Transformers, vLLM and SGLang with the model's own code; ``granite_speech`` for the class
            of that name; ``ultravox`` for vLLM and llama.cpp.
        merge: Write the weights of encoder and LLM too. Otherwise the files name their folders or hub ids.
        encoder: New place of the encoder, if it has moved.
        llm: New place of the LLM, if it has moved.
        force: Replace ``out`` if it exists.

    Raises `ConfigError` if ``out`` is not an empty folder, `CheckpointError` for ``run`` as
    `SpeechLLM.from_pretrained`, and `ModelError` if the model cannot be expressed in the format.
    """
    out = Path(out).expanduser()
    check_place(out, locate(run), force=force)
    model = SpeechLLM.from_pretrained(run, encoder=encoder, llm=llm, device="cpu")
    with atomic_folder(out) as folder:
        write(model, folder, form, merge=merge)
    return out


def check_place(out: Path, run: Path, *, force: bool) -> None:
    """Raise `ConfigError` if ``out`` is a file, or a folder with files that ``force`` must not replace.

    Only a folder with a model, which is not the checkpoint itself, is replaced: a wrong name must not delete others.
    """
    if out.is_file():
        raise ConfigError(f"{out} is a file: name a new folder")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not force:
        raise ConfigError(f"{out} is not empty: name a new folder, or add --force to replace it as a whole")
    if run.resolve().is_relative_to(out.resolve()) or not (out / "config.json").is_file():
        raise ConfigError(
            f"{out} holds other files than an exported model, which --force would delete: name a new folder"
        )


def write(model: Any, folder: Path, form: Form, *, merge: bool) -> None:
    """Write the files of ``model`` to the existing ``folder``; see `export` for the arguments and errors."""
    match form:
        case "custom":
            from ossicle.export.custom import write_custom

            write_custom(model, folder, merge=merge)
        case "granite_speech":
            from ossicle.export.granite import write_granite

            write_granite(model, folder, merge=merge)
        case _:
            from ossicle.export.ultravox import write_ultravox

            write_ultravox(model, folder, merge=merge)
    write_card(model, folder, form)
