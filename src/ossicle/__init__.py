"""Ossicle teaches a frozen LLM to listen: contrastive pretraining of a projector between a speech encoder and an LLM."""

__version__ = "0.1.0"
