"""Decoding, scoring and alignment analysis."""
