"""The frozen encoder, the projector, the frozen LLM, and the model that they form."""
