"""Train a projector that lets a frozen LLM understand speech, by contrastive pretraining."""

from typing import TYPE_CHECKING, Any

from ossicle.errors import OssicleError

if TYPE_CHECKING:
    from ossicle.models.speech_llm import SpeechLLM

__version__ = "0.1.0"
__all__ = ["OssicleError", "SpeechLLM", "__version__"]


def __getattr__(name: str) -> Any:
    """Import `SpeechLLM` on first use, because it needs torch and ``import ossicle`` should stay fast."""
    if name == "SpeechLLM":
        from ossicle.models.speech_llm import SpeechLLM

        return SpeechLLM
    raise AttributeError(f"module 'ossicle' has no attribute '{name}'")


def __dir__() -> list[str]:
    """Return the names of this module, including those that are imported on first use."""
    return sorted({*globals(), *__all__})
