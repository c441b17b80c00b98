"""The projector that ships with the laboratory: Whisper-base to SmolLM2-135M-Instruct, for recorded English."""

from pathlib import Path

NAME = "whisper-base-smollm2-135m"


def folder() -> str:
    """Return the folder of the checkpoint, which ``ossicle transcribe`` uses by default."""
    return str(Path(__file__).parent / NAME)
