"""`ossicle study`: a grid of (pretraining x fine-tuning fraction x seed), from a YAML file to ``results.json``."""
