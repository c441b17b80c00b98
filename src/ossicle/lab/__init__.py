"""The embedded world: a grammar, synthetic voices, and a tiny encoder and LLM that ship with the package."""
