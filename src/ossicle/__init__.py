"""Ossicle teaches a frozen LLM to listen, by contrastive pretraining of a projector from a speech encoder to it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ossicle.models.speech_llm import SpeechLLM as SpeechLLM

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import `SpeechLLM` when it is first used: ``import ossicle`` alone, and the command line, stay quick."""
    if name == "SpeechLLM":
        from ossicle.models.speech_llm import SpeechLLM

        return SpeechLLM
    raise AttributeError(f"module 'ossicle' has no attribute '{name}'")
