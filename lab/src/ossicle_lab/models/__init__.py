"""The tiny encoder and LLM of the laboratory: their training and their weights."""

from pathlib import Path


def weights(part: str) -> str:
    """Return the folder of the laboratory's ``encoder`` or ``llm``; the model name ``lab`` resolves to it."""
    return str(Path(__file__).parent / "weights" / part)
