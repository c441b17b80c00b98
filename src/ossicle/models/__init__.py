"""The frozen encoder and LLM, the projector between them, and their composition."""
