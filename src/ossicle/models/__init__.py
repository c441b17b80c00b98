"""The frozen encoder, the frozen LLM and the projector between them."""
