"""Pure tensor functions: no model, no configuration."""
