"""Compute losses on plain tensors."""
