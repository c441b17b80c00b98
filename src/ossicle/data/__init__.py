"""Manifests, datasets, prompts and batches."""
