"""Ossicle teaches a frozen LLM to listen, by contrastive pretraining of a projector from a speech encoder to it."""

__version__ = "0.1.0"
