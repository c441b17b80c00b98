"""The laboratory: a generated world with a tiny encoder and LLM, the demo, studies and reports."""
