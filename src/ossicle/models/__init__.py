"""The frozen encoder, the frozen LLM and the projector between them."""

from ossicle.models.official import load_official_projector
from ossicle.models.speech_llm import ModelConfig, SpeechLLM

__all__ = ["ModelConfig", "SpeechLLM", "load_official_projector"]
